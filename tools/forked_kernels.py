"""Kernels for nbval that begin as forks of a process which has imported the heavy libraries.

A hundred notebooks would import PyTorch, diffusers and transformers a hundred times, seconds each.
Nothing of this project is imported before the fork: what a notebook imports of it is new to it.
"""

import gc
import os
import tempfile
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from uuid import uuid4

from ipykernel.kernelapp import IPKernelApp
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.manager import KernelManager
from jupyter_client.provisioning import LocalProvisioner

LIBRARIES = [
    *("boto3", "diffusers", "fastcore.all", "ipywidgets", "jsonschema", "nbdev.showdoc", "peft"),
    *("pika", "PIL", "pydantic_settings", "requests", "tenacity"),
]
PIPELINE = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion"
"""What diffusers imports only when it is asked for."""


def with_libraries() -> ForkServerContext:
    """Where processes are forks of one that has imported the libraries, and nothing of ours."""
    context = get_context("forkserver")
    context.set_forkserver_preload([*LIBRARIES, PIPELINE, __name__])
    return context


class ForkedProcess:
    """A forked kernel; as much of `subprocess.Popen` as a provisioner asks for."""

    stdin = stdout = stderr = None

    def __init__(self, command: Sequence[str], folder: str, environment: dict[str, str]) -> None:
        options = command[command.index("ipykernel_launcher") + 1 :]
        self._process = with_libraries().Process(
            target=_become_kernel, args=(options, folder, environment), daemon=True
        )
        self._process.start()
        self.pid = self._process.pid
        self.terminate, self.kill = self._process.terminate, self._process.kill

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        return self._process.exitcode

    def wait(self) -> int | None:
        """Wait for its end; returns its exit status."""
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)


def _become_kernel(options: Sequence[str], folder: str, environment: dict[str, str]) -> None:
    """Be what ``python -m ipykernel_launcher OPTIONS`` is, in a forked process."""
    gc.freeze()  # the libraries stay: no collection looks at their objects, or copies their pages
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    IPKernelApp.launch_instance(list(options))


class ForkedProvisioner(LocalProvisioner):
    """Forks a kernel where its parent starts one."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Fork it; its errors go where those of the tests go."""
        self.cwd = kwargs.get("cwd") or os.getcwd()
        self.process = ForkedProcess(cmd, self.cwd, kwargs["env"])
        self.pid = self.process.pid
        return self.connection_info


class ForkedKernel(KernelManager):
    """A notebook's kernel, forked, on sockets of its own in a folder.

    TCP ports are chosen before the kernel starts, and another process may take one until it does;
    then the kernel ends at once. What a kernel says as it ends is shown, which nbval throws away.
    """

    def __init__(self, **options: Any) -> None:
        own = Path(tempfile.gettempdir(), f"kernel-{uuid4().hex}.json")
        super().__init__(transport="ipc", connection_file=str(own), **options)
        self.provisioner = ForkedProvisioner(
            kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self
        )
