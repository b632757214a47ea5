#!/bin/sh
# Makes RabbitMQ available for the tests, which start private nodes of their own.
# Silent when it is installed; installs Debian's package as root; else says what to install.
set -eu

if [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || command -v rabbitmq-server >/dev/null 2>&1; then
    exit 0
fi

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "The tests need RabbitMQ (3.10 or later), which is not installed here." >&2
    echo "Debian and Ubuntu: sudo apt-get install --no-install-recommends rabbitmq-server" >&2
    echo "Elsewhere: put rabbitmq-server and rabbitmqctl on PATH." >&2
    exit 1
fi

# The package would start a service; the tests want only its files.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi

echo "Installing rabbitmq-server"
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends rabbitmq-server
