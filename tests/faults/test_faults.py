"""The fault suite in its short form; ``make faults`` runs all of it."""

import pytest
import run
from cases import CASES, SHORT
from ground import Ground
from rabbit import RabbitNode
from s3_server import S3Server


@pytest.mark.parametrize("name", SHORT)
def test_nothing_is_lost_and_nothing_is_doubled(name: str, node: RabbitNode, s3: S3Server) -> None:
    """Every job has one outcome, one picture, and its own artist; the queues are empty."""
    with Ground(node, s3) as ground:
        CASES[name](ground)
        verdict = ground.settle()
        assert verdict.is_good, f"{verdict}\n{ground.logs()[-4000:]}"
        assert verdict.injections


def test_the_page_is_of_the_stored_results() -> None:
    """What is written into it by hand would be lost with the next run."""
    assert run.PAGE.read_text(encoding="utf-8") == run.report()
