#!/bin/sh
# Makes the programs available that the tests use and PyPI does not have: RabbitMQ (private nodes),
# exiftool (a third party's reader of labels), Chromium (the panel in a real browser), promtool (the
# alerts) and a kubectl of today (Debian's is old), which goes into the tests' venv.
# Silent when they are installed; installs Debian's packages as root; else says what to install.
set -eu

kubectl version --client 2>/dev/null | grep -q '^Kustomize Version: v5' || python tools/fetch_kubectl.py

packages=""
[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || command -v rabbitmq-server >/dev/null 2>&1 ||
    packages="$packages rabbitmq-server"
command -v exiftool >/dev/null 2>&1 || packages="$packages libimage-exiftool-perl"
command -v chromium >/dev/null 2>&1 || packages="$packages chromium"
command -v promtool >/dev/null 2>&1 || packages="$packages prometheus"
[ -n "$packages" ] || exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "The tests need programs that are not installed here:$packages" >&2
    echo "Debian and Ubuntu: sudo apt-get install --no-install-recommends$packages" >&2
    echo "Elsewhere: put rabbitmq-server, rabbitmqctl (3.10 or later), Erlang's erl_call," >&2
    echo "exiftool, chromium and promtool on PATH." >&2
    exit 1
fi

# RabbitMQ's and Prometheus' packages would start services; the tests want only their files.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi

echo "Installing$packages"
apt-get update -qq
# shellcheck disable=SC2086  # a list of words
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages
