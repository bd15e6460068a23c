#!/bin/sh
# Let nodes in and nobody else: nginx in front of the SuperLink. It prints a line for each refusal.
#
#   start.sh           become nginx; SIGQUIT ends it gently, SIGHUP reads certificates and names again
#   start.sh --show    print nginx's configuration and end
#
# Needs nginx and envsubst (gettext-base). Certificates that were renewed and a SuperLink that got
# another address are noticed within seconds.
set -eu
here=$(dirname "$0")
PATH=$PATH:/usr/sbin:/usr/local/sbin
TZ=UTC
export PATH TZ
value=

fail() {
  echo "gateway: $1" >&2
  exit 2
}

# setting NAME DEFAULT: an address or a file
setting() {
  eval "value=\${GATEWAY_$1:-$2}"
  case $value in
    "" | *[!A-Za-z0-9_./:[\]-]*) fail "GATEWAY_$1 may hold letters, digits and _ . / : [ ] - only, got '$value'." ;;
  esac
  export "GATEWAY_$1=$value"
}

# number NAME DEFAULT: from 1 to 1000000
number() {
  eval "value=\${GATEWAY_$1:-$2}"
  case $value in
    *[!0-9]* | 0* | ????????*) fail "GATEWAY_$1 must be a whole number from 1 to 1000000, got '$value'." ;;
  esac
  [ "$value" -le 1000000 ] || fail "GATEWAY_$1 must be a whole number from 1 to 1000000, got '$value'."
  export "GATEWAY_$1=$value"
}

# How many bodies of 5 MiB two thirds of the container's memory hold; of control groups' version 2 or 1.
bodies() {
  memory=$(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)
  for file in /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; do
    limit=$(sed -n 's/^[0-9]\{4,15\}$/&/p' "$file" 2>/dev/null || true)
    [ -z "$limit" ] || [ $((limit / 1024)) -ge "$memory" ] || memory=$((limit / 1024))
  done
  bodies=$((memory * 2 / 3 / 5184))
  [ "$bodies" -ge 8 ] || bodies=8
  [ "$bodies" -le 512 ] || bodies=512
  echo "$bodies"
}

# What tells renewed files from old ones, and the SuperLink's addresses.
seen() {
  stat -Lc '%i %Y %s' "$GATEWAY_CERTIFICATE" "$GATEWAY_KEY" "$GATEWAY_CA" 2>/dev/null || true
  getent ahosts "$GATEWAY_SUPERLINK_NAME" | sort -u || true
}

# Have nginx read again what has changed.
watch() {
  before=$(seen)
  while sleep 5 && kill -0 "$1" 2>/dev/null; do
    now=$(seen)
    [ "$now" = "$before" ] || kill -HUP "$1"
    before=$now
  done
}

setting LISTEN 0.0.0.0:8443 # what nodes reach
setting SUPERLINK superlink:8000 # its certificate must hold for the name
setting CERTIFICATE /run/secrets/server.pem
setting KEY /run/secrets/server.key
setting CA /run/secrets/ca.crt # signed the SuperLink's certificate
number RATE 200 # requests a second of one address in the long run
number BURST 1000 # and how many may wait beyond that
number REQUESTS 256 # of one address at the same time
number UPLOADS 64 # bodies among them
number ALL_UPLOADS "$(bodies)" # bodies of all addresses, each up to 5 MiB of memory
number HEADER_SECONDS 15 # a request's head may take
number BODY_SECONDS 30 # a pause within its body
number CONNECTIONS 4096 # of one worker, to both sides
number WORKERS 2 # processes of nginx
for name in LISTEN SUPERLINK; do
  eval "value=\$GATEWAY_$name"
  case ${value##*:} in
    "$value" | "" | *[!0-9]*) fail "GATEWAY_$name must be NAME:PORT, got '$value'." ;;
  esac
done
GATEWAY_SUPERLINK_NAME=${GATEWAY_SUPERLINK%:*}
GATEWAY_FREE=$((GATEWAY_BURST * 2 / 5)) # pass at once; beyond them each waits for its turn
GATEWAY_USER=
[ "$(id -u)" != 0 ] || GATEWAY_USER="user nobody $(id -gn nobody);" # workers give up root
GATEWAY_RUN=/tmp/gateway
[ "${1:-}" = --show ] || GATEWAY_RUN=$(mktemp -d)
export GATEWAY_SUPERLINK_NAME GATEWAY_FREE GATEWAY_USER GATEWAY_RUN

# Only these: nginx's own variables look the same.
names=$(env | sed -n 's/^\(GATEWAY_[A-Z_]*\)=.*/$\1/p' | tr '\n' ' ')
if [ "${1:-}" = --show ]; then
  exec envsubst "$names" < "$here/nginx.conf.template"
fi
[ $# -eq 0 ] || fail "unknown argument '$1'; known is --show"
envsubst "$names" < "$here/nginx.conf.template" > "$GATEWAY_RUN/nginx.conf"
mkfifo "$GATEWAY_RUN/log"
stdbuf -oL sed -Enf "$here/log.sed" "$GATEWAY_RUN/log" &
watch $$ &
# shellcheck disable=SC3045 # not of POSIX, but of dash and busybox
ulimit -n "$(ulimit -Hn)"
echo "gateway: $GATEWAY_LISTEN, to $GATEWAY_SUPERLINK" >&2
exec nginx -p "$GATEWAY_RUN" -e "$GATEWAY_RUN/log" -c "$GATEWAY_RUN/nginx.conf"
