#!/bin/sh
# Checks for what building, running and testing needs, installs what it can with
# the system's package manager (as root on Debian or Ubuntu), else prints the
# one line to type.
set -eu

missing=""
need() { # need COMMAND PACKAGE
  command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
check_node() { # of Node where there is one
  ! command -v node >/dev/null 2>&1 || node -e 'process.exit(parseInt(process.versions.node) < 18 ? 1 : 0)' || {
    echo "setup: Node $(node --version) is too old: install Node 18 or newer, with npm, from https://nodejs.org/en/download" >&2
    exit 1
  }
}

if ! command -v go >/dev/null 2>&1; then
  echo "setup: Go is missing: install Go 1.26 or newer from https://go.dev/dl/" >&2
  exit 1
fi
need cc gcc
need redis-server redis-server
need node nodejs
need npm npm
need python3 python3
if command -v python3 >/dev/null 2>&1 && ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
  missing="$missing python3-venv"
fi
# The browser of the tests: whatever is Chromium.
if ! command -v chromium >/dev/null 2>&1 && ! command -v chromium-browser >/dev/null 2>&1 &&
  ! command -v google-chrome >/dev/null 2>&1 && [ ! -d "/Applications/Google Chrome.app" ]; then
  missing="$missing chromium"
fi
check_node
[ -n "$missing" ] || exit 0

if command -v apt-get >/dev/null 2>&1; then
  install="apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends$missing"
  if [ "$(id -u)" = 0 ]; then
    echo "setup: installing$missing" >&2
    sh -c "$install" >&2
    check_node # the system's package may be old
    exit 0
  fi
  echo "setup: missing:$missing. Type: sudo sh -c '$install'" >&2
elif command -v brew >/dev/null 2>&1; then
  echo "setup: missing:$missing. Type: xcode-select --install; brew install redis python node; brew install --cask chromium" >&2
else
  echo "setup: missing:$missing. Install them with your system's package manager." >&2
fi
exit 1
