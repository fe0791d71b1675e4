#!/bin/sh
# Prepares everything that a go command needs to build lokinetd, and writes it to .cache/env as export lines, to be
# sourced or evaluated: the toolchain that go.mod pins, the overlay that gives its crypto/tls raw public keys, and the
# go.mod that names our changed quic-go.
#
# Called by the Makefile before every go command, so it is quick when nothing has changed. Two things force its shape:
# a Go older than 1.21 cannot even read our go.mod, and a toolchain that Go has downloaded lies in the module cache,
# where overlays are refused. In that case the module cache is one of our own, and the toolchain no longer lies in it.
set -eu
cd "$(dirname "$0")/../../.."
top=$PWD
pinned=$(sed -n 's/^toolchain //p' go.mod)

fail() {
	printf '%s\n' "lokinetd: $*" >&2
	exit 1
}
install="Any Go from 1.21 on will do, it fetches $pinned by itself. Debian 12 packages Go 1.19, which is too old:
  get the archive of $pinned for this machine from https://go.dev/dl/ and, as root,
  rm -rf /usr/local/go && tar -C /usr/local -xzf $pinned.linux-*.tar.gz"

case $top in
*[[:space:]\'\"]*) fail "GOFLAGS cannot carry the path '$top': move the sources to one without spaces and quotes" ;;
esac

# 1. A Go that can read go.mod: $GO, else the one in PATH, else where Go's own archive is unpacked.
had=$(command -v go) || had=
found=
for go in ${GO:-$had /usr/local/go/bin/go}; do
	version=$(GOTOOLCHAIN=local GOFLAGS= "$go" version 2>/dev/null | grep -o 'go1\.[0-9]*' | head -n 1)
	found=${found:-$version}
	[ "${version#go1.}" -ge 21 ] 2>/dev/null && break
	go=
done
[ -n "$found" ] || fail "there is no go command. $install"
[ -n "$go" ] || fail "the go command is $found. $install"

# 2. The pinned toolchain, whatever is installed. GOFLAGS is asked for too: it may come from go's own configuration.
asked=$(GOTOOLCHAIN=$pinned GOFLAGS= "$go" env GOROOT GOVERSION GOMODCACHE GOFLAGS) ||
	fail "$version is installed and could not fetch $pinned. Let it download, or install $pinned: https://go.dev/dl/"
{
	read -r root
	read -r version
	read -r modcache
	read -r flags || flags=
} <<END
$asked
END
case $version in
"$pinned" | "$pinned "*) ;;
*) fail "asked for $pinned, got $version at $root" ;;
esac

# 3. A module cache that the toolchain does not lie in.
case $root/ in
"$modcache"/*) modcache=$top/.cache/mod ;;
esac

# 4. The changed sources, made anew when the toolchain, the modules or the generator have changed.
mkdir -p .cache
made=.cache/made
from="$root $version $top"
if [ "$(cat $made 2>/dev/null)" != "$from" ] || [ ! -e .cache/overlay/overlay.json ] || [ ! -e .cache/go.mod ] || [ ! -e .cache/quic-go/go.mod ] ||
	[ -n "$(find router/link/overlay go.mod go.sum -newer $made)" ]; then
	touch .cache/before
	PATH=$root/bin:$PATH GOTOOLCHAIN=local GOFLAGS= GOMODCACHE=$modcache go run ./router/link/overlay .cache
	echo "$from" >$made
	touch -r .cache/before $made
fi

# 5. The result. The flags that the user has set stay, but for an overlay and a go.mod: older ones of ours or such that cannot be joined with them.
flags=$(printf '%s' "${GOFLAGS:-$flags}" | tr -s ' ' '\n' | grep -v '^--\{0,1\}\(overlay\|modfile\)=' | tr '\n' ' ') || true
new=.cache/env.$$
{
	[ "$had" = "$root/bin/go" ] || echo "export PATH='$root/bin':\"\$PATH\";"
	echo "export GOTOOLCHAIN=local;"
	echo "export GOMODCACHE='$modcache';"
	echo "export GOFLAGS='$flags-overlay=$top/.cache/overlay/overlay.json -modfile=$top/.cache/go.mod';"
} >$new
mv $new .cache/env
