#!/bin/sh
# Makes a Debian 13 with RabbitMQ 4 in a folder, beside the machine's own RabbitMQ, as root: a minute
# or two. The mirror is the one that this machine's apt uses. Silent when it is there.
set -eu

root=$1
[ ! -e "$root/.installed" ] || exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "RabbitMQ 4 beside another needs root, on Debian or Ubuntu. Elsewhere: install it," >&2
    echo "and put its rabbitmq-server, rabbitmqctl, epmd and erl_call first on PATH." >&2
    exit 1
fi
if ! command -v debootstrap >/dev/null 2>&1; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends debootstrap
fi
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | head -n 1)
rm -rf "$root"
debootstrap --variant=minbase trixie "$root" "$mirror" >"$root.log" 2>&1 || {
    tail -n 20 "$root.log" >&2
    exit 1
}
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # the package would start a service
chmod +x "$root/usr/sbin/policy-rc.d"
chroot "$root" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends rabbitmq-server >>"$root.log" 2>&1 || {
    tail -n 20 "$root.log" >&2
    exit 1
}
touch "$root/.installed"
