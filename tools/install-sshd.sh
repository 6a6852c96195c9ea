#!/usr/bin/env bash
# The test of `deploy` talks to a real sshd on loopback.  Install it where we may; elsewhere the test says that it was skipped.
set -euo pipefail
[ -x /usr/sbin/sshd ] && command -v ssh >/dev/null && command -v scp >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y openssh-server openssh-client >/dev/null || true
fi
