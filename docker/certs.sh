#!/usr/bin/env bash
# Certificates and keys of a federation. Nothing that exists is ever overwritten.
#
#   certs.sh server NAME_OR_IP...   the authority if there is none, the server's certificate for these
#                                   names, the secret that SuperLink and executor share
#   certs.sh node SITE...           two key pairs for each site, to connect and to sign, and the secret
#                                   of its two containers
#   certs.sh renew [NAME_OR_IP...]  a new server certificate, for the same names if none is given; the
#                                   old one stays beside it
#   certs.sh show                   every certificate and its last day
#
# CERTS_DIR (default: `certs` beside this file) gets
#   ca.crt                    what all trust
#   ca/ca.key                 signs server certificates; mounted nowhere, keep a copy offline
#   server/                   what the server machine mounts: server.pem, server.key, superexec.secret
#   keys/SITE.pub             what the server must know of a site
#   nodes/SITE/               what the site's machine mounts: node.key, signing.key, superexec.secret,
#                             ca.crt; signing.key.pub is what a roster lists
# DAYS (default 365) and CA_DAYS (default 3650) say how long certificates are good for.
set -euo pipefail
umask 077

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
out="${CERTS_DIR:-$here/certs}"
days="${DAYS:-365}"
ca_days="${CA_DAYS:-3650}"
app=49999          # the containers' user
warn_days=30

say() { printf '%s\n' "$*"; }
fail() { printf 'certs.sh: %s\n' "$*" >&2; exit 1; }
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit "$1"; }

# Containers read single mounted files as user 49999; the folders around stay closed to all others.
hand_over() {
  if [ "$(id -u)" = 0 ]; then
    chown "$app:$app" "$@"
    chmod 0400 "$@"
  elif [ "$(id -u)" != "$app" ]; then
    say "  not root: make it readable by the containers, sudo chown $app:$app $*"
  fi
}

make_authority() {
  if [ -e "$out/ca.crt" ]; then
    say "exists: $out/ca.crt"
    return
  fi
  [ ! -e "$out/ca/ca.key" ] ||
    fail "$out/ca/ca.key is there but $out/ca.crt is not: put ca.crt back, all trust that one"
  mkdir -p "$out/ca"
  openssl ecparam -name secp384r1 -genkey -noout -out "$out/ca/ca.key"
  openssl req -x509 -new -sha384 -key "$out/ca/ca.key" -days "$ca_days" -subj "/CN=fedprune federation" \
    -addext "basicConstraints=critical,CA:TRUE,pathlen:0" \
    -addext "keyUsage=critical,keyCertSign,cRLSign" -out "$out/ca.crt"
  chmod 0644 "$out/ca.crt"
  say "made: $out/ca.crt and ca/ca.key (good for $ca_days days; keep the key offline)"
}

# "DNS:name,IP:address" for the names given and those by which containers call each other
alternative_names() {
  local name list=""
  for name in superlink gateway localhost 127.0.0.1 "$@"; do
    case "$name" in
      *[!A-Za-z0-9.:*-]* | "" | -*) fail "'$name' is neither a host name nor an address" ;;
      *:*:* ) name="IP:$name" ;;
      *:* ) fail "'$name' must be a name or an address without a port" ;;
      *[!0-9.]* ) name="DNS:$name" ;;
      * ) name="IP:$name" ;;
    esac
    case ",$list," in *",$name,"*) ;; *) list="${list:+$list,}$name" ;; esac
  done
  printf '%s' "$list"
}

# sign_server KEY CERTIFICATE NAMES
sign_server() {
  local work
  [ -e "$out/ca/ca.key" ] || fail "there is no $out/ca/ca.key: put it back to sign a certificate"
  work="$(mktemp -d "$out/.work-XXXXXX")"
  openssl req -new -sha384 -key "$1" -subj "/CN=fedprune server" -out "$work/request"
  printf '%s\n' "subjectAltName=$3" "basicConstraints=critical,CA:FALSE" \
    "keyUsage=critical,digitalSignature" "extendedKeyUsage=serverAuth" \
    "authorityKeyIdentifier=keyid" > "$work/extensions"
  openssl x509 -req -sha384 -in "$work/request" -CA "$out/ca.crt" -CAkey "$out/ca/ca.key" \
    -set_serial "0x$(openssl rand -hex 16)" -days "$days" -extfile "$work/extensions" \
    -out "$work/certificate" 2> "$work/said" || { cat "$work/said" >&2; rm -r "$work"; exit 1; }
  mv -n "$work/certificate" "$2"
  rm -r "$work"
}

# The one folder that a container lists itself; there is nothing secret in it.
make_keys_folder() {
  mkdir -p "$out/keys"
  chmod 0755 "$out/keys"
}

make_secret() {
  if [ -e "$1" ]; then
    say "exists: $1"
    return
  fi
  openssl rand -hex 32 | tr -d '\n' > "$1"
  hand_over "$1"
  say "made: $1"
}

make_server() {
  local names
  [ $# -gt 0 ] || fail "say by which names or addresses nodes reach the server: certs.sh server NAME..."
  names="$(alternative_names "$@")"
  make_authority
  mkdir -p "$out/server"
  make_keys_folder
  if [ -e "$out/server/server.pem" ]; then
    say "exists: $out/server/server.pem ($(names_of "$out/server/server.pem")); other names: certs.sh renew"
  else
    [ -e "$out/server/server.key" ] ||
      openssl ecparam -name secp384r1 -genkey -noout -out "$out/server/server.key"
    sign_server "$out/server/server.key" "$out/server/server.pem" "$names"
    hand_over "$out/server/server.key"
    chmod 0644 "$out/server/server.pem"
    say "made: $out/server/server.pem for $names (good for $days days)"
  fi
  make_secret "$out/server/superexec.secret"
}

names_of() {
  openssl x509 -in "$1" -noout -ext subjectAltName | sed -n 's/IP Address:/IP:/g; s/, /,/g; s/^ *\(DNS\|IP\)/\1/p'
}

renew() {
  local old="$out/server/server.pem" names stamp
  [ -e "$old" ] || fail "there is no $old to renew: certs.sh server NAME..."
  names="$(names_of "$old")"
  if [ $# -gt 0 ]; then names="$(alternative_names "$@")"; fi
  stamp="$(date -u +%Y%m%d-%H%M%S)"
  [ ! -e "$old.$stamp" ] || fail "$old.$stamp exists: try again in a second"
  sign_server "$out/server/server.key" "$old.new" "$names"
  chmod 0644 "$old.new"
  ln "$old" "$old.$stamp"
  mv "$old.new" "$old"
  say "renewed: $old for $names (good for $days days); before: $old.$stamp"
  say "restart what reads it: docker compose --file compose.server.yaml restart superlink gateway"
}

make_node() {
  local site folder
  [ $# -gt 0 ] || fail "name the sites: certs.sh node SITE..."
  for site in "$@"; do
    case "$site" in
      *[!A-Za-z0-9._-]* | "" | [!A-Za-z0-9]*) fail "a site's name has letters, digits, '.', '_', '-': '$site'" ;;
    esac
  done
  for site in "$@"; do
    folder="$out/nodes/$site"
    mkdir -p "$folder"
    make_keys_folder
    if [ -e "$folder/node.key" ]; then
      say "exists: $folder/node.key"
    else
      ssh-keygen -q -t ecdsa -b 384 -N "" -C "$site" -f "$folder/node.key"
      hand_over "$folder/node.key"
      say "made: $folder/node.key"
    fi
    if [ -e "$out/keys/$site.pub" ]; then
      say "exists: $out/keys/$site.pub"
    else
      cp -n "$folder/node.key.pub" "$out/keys/$site.pub"
      chmod 0644 "$folder/node.key.pub" "$out/keys/$site.pub"
      say "made: $out/keys/$site.pub, for the server's folder 'keys'"
    fi
    if [ -e "$folder/signing.key" ]; then
      say "exists: $folder/signing.key"
    else
      ssh-keygen -q -t ed25519 -N "" -C "$site" -f "$folder/signing.key"
      hand_over "$folder/signing.key"
      chmod 0644 "$folder/signing.key.pub"
      say "made: $folder/signing.key, and signing.key.pub for the roster"
    fi
    make_secret "$folder/superexec.secret"
    if [ -e "$folder/ca.crt" ]; then
      say "exists: $folder/ca.crt"
    elif [ -e "$out/ca.crt" ]; then
      cp -n "$out/ca.crt" "$folder/ca.crt"
      chmod 0644 "$folder/ca.crt"
    else
      say "  put the server's ca.crt into $folder"
    fi
  done
}

show() {
  local certificate end left found=0 status=0
  while IFS= read -r certificate; do
    found=1
    end="$(openssl x509 -in "$certificate" -noout -enddate | cut -d= -f2)"
    left=$((($(date -d "$end" +%s) - $(date +%s)) / 86400))
    say "$certificate"
    say "  good until $end ($left days): $(openssl x509 -in "$certificate" -noout -subject -nameopt RFC2253 |
      sed 's/^subject=//')"
    if ! openssl x509 -in "$certificate" -noout -checkend 0 > /dev/null; then
      say "  WARNING: it has EXPIRED"
      status=1
    elif [ "$left" -lt "$warn_days" ]; then
      say "  WARNING: less than $warn_days days left"
      status=1
    fi
  done < <(find "$out" -type f \( -name '*.crt' -o -name '*.pem' \) 2> /dev/null | sort)
  [ "$found" = 1 ] || fail "there are no certificates in $out"
  return "$status"
}

command -v openssl > /dev/null || fail "openssl is not installed"
command -v ssh-keygen > /dev/null || fail "ssh-keygen is not installed (package openssh-client)"
[ $# -gt 0 ] || usage 2
action="$1"
shift
case "$action" in
  -h | --help | help) usage 0 ;;
  server | node | renew | show) ;;
  *) usage 2 ;;
esac
if [ "$action" != show ]; then
  mkdir -p "$out"
  chmod 0700 "$out"
fi
case "$action" in
  server) make_server "$@" ;;
  node) make_node "$@" ;;
  renew) renew "$@" ;;
  show) show ;;
esac
