# Packages from Debian, checked by apt against Debian's signed index, without touching the system's own apt state.
# Each suite and architecture has a private apt folder in target/setup/apt; the mirror is the one that the machine's
# own apt sources name, or $DEBIAN_MIRROR. To be sourced by bash after common.sh.
# shellcheck shell=bash

debian_keyring=/usr/share/keyrings/debian-archive-keyring.gpg

host_codename() { (. /etc/os-release && echo "${VERSION_CODENAME:-}"); }
host_arch() { dpkg --print-architecture; }

# The mirrors that may be Debian's own archive, best guess first. apt itself reads the sources (both forms).
debian_mirrors() {
    if [ -n "${DEBIAN_MIRROR:-}" ]; then
        echo "$DEBIAN_MIRROR"
        return
    fi
    apt-get update --print-uris 2>/dev/null |
        sed -nE "s|^'(.*)/dists/[^/']*/(In)?Release'.*|\1|p" |
        grep -v -e security | awk '!seen[$0]++ { if (/debian$/) print; else rest = rest $0 "\n" } END { printf "%s", rest }'
}

# Writes the configuration of a private apt: CONFIG-FOLDER ARCHITECTURE. Proxies and the like of the system stay
# in force; hooks of the system's apt do not run.
write_apt_config() {
    local dir=$1 arch=$2
    mkdir -p "$dir"/{conf.d,state/lists/partial,cache/archives/partial}
    find "$dir/conf.d" -type l -delete
    local f
    for f in /etc/apt/apt.conf.d/*; do
        [ -f "$f" ] && ln -s "$f" "$dir/conf.d/"
    done
    : >"$dir/status"
    # The system may have one of this name: not to be written through its link.
    rm -f "$dir/conf.d/zz-private.conf"
    cat >"$dir/conf.d/zz-private.conf" <<EOF
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
Dir::State "$dir/state";
Dir::State::status "$dir/status";
Dir::Cache "$dir/cache";
Dir::Etc::sourcelist "$dir/private.sources";
Dir::Etc::sourceparts "/nonexistent";
Dir::Etc::preferences "/nonexistent";
Dir::Etc::preferencesparts "/nonexistent";
APT::Architecture "$arch";
#clear APT::Architectures;
APT::Architectures { "$arch"; };
APT::Sandbox::User "root";
APT::Get::List-Cleanup "true";
Acquire::Languages "none";
Acquire::Retries "3";
EOF
    echo "Dir::Etc::parts \"$dir/conf.d\";" >"$dir/apt.conf"
}

megabytes() { awk -v b="$1" 'BEGIN { if (b < 1e6) printf "%.1f MB", b / 1e6; else printf "%.0f MB", b / 1e6 }'; }

declare -A debian_fresh=()

# Brings the index of SUITE for ARCHITECTURE ("source": of sources) up to date (once in a run) and sets `apt_config` to its configuration.
debian_suite() { # SUITE ARCHITECTURE
    local suite=$1 arch=$2 dir=$target/setup/apt/$1-$2 mirror types=deb
    apt_config=$dir/apt.conf
    [ -z "${debian_fresh[$suite-$arch]:-}" ] || return 0
    have apt-get || die "Debian's packages are needed and there is no apt-get here: run this on Debian or Ubuntu"
    [ -r "$debian_keyring" ] || die "Debian's signing keys are needed to check its packages: install the package debian-archive-keyring, then start again"
    if [ "$arch" = source ]; then
        types=deb-src
        write_apt_config "$dir" "$(host_arch)"
    else
        write_apt_config "$dir" "$arch"
    fi
    local mirrors
    mirrors=$(debian_mirrors)
    [ -n "$mirrors" ] || die "no Debian mirror in this machine's apt sources: set DEBIAN_MIRROR to the address of one, then start again"
    : >"$target/setup/apt/log"
    for mirror in $mirrors; do
        printf 'Types: %s\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' $types "$mirror" "$suite" "$debian_keyring" >"$dir/private.sources"
        if APT_CONFIG=$apt_config apt-get -q -o APT::Update::Error-Mode=any update >>"$target/setup/apt/log" 2>&1; then
            debian_fresh[$suite-$arch]=1
            return 0
        fi
    done
    say "Debian's index of $suite ($arch) cannot be had ($(grep -m1 '^[EW]:' "$target/setup/apt/log" || echo "see target/setup/apt/log")): check the network and the apt sources or set DEBIAN_MIRROR to the address of a Debian mirror, then start again"
    return 1
}

# The names of SUITE's packages that match an extended regular expression.
debian_names() { # SUITE ARCHITECTURE REGEX
    debian_suite "$1" "$2" || return 1
    APT_CONFIG=$apt_config apt-cache pkgnames | grep -E "$3" || true
}

# The versions of a package in SUITE, newest first.
debian_versions() { # SUITE ARCHITECTURE PACKAGE
    debian_suite "$1" "$2" || return 1
    APT_CONFIG=$apt_config apt-cache madison "$3" 2>/dev/null | awk -F' *[|] *' '{ print $2 }'
}

# Whether FILE in target/downloads has the hash of the signed index, as apt-get --print-uris says it ("SHA256:..."). apt itself looks only at the size of a file that is
# there already.
debian_is_whole() { # FILE HASH
    local kind=${2%%:*} program
    case $kind in
    SHA256) program=sha256sum ;;
    SHA512) program=sha512sum ;;
    *) say "the index has no hash of ${1##*/} that is known here (${2:-none})"; return 1 ;;
    esac
    [ "$("$program" "$1" | cut -d' ' -f1)" = "${2#*:}" ]
}

# A file that is there and is not the index's goes, so that it is downloaded anew.
debian_drop_damaged() { # FILE HASH
    [ -f "$1" ] && ! debian_is_whole "$1" "$2" || return 0
    say "${1##*/} in target/downloads is damaged: it is downloaded anew"
    rm -f "$1"
}

# Whether what was downloaded is the index's; else a line says so.
debian_expect_whole() { # FILE HASH
    [ -f "$1" ] || { say "apt-get left no ${1##*/} in target/downloads"; return 1; }
    debian_is_whole "$1" "$2" || { say "${1##*/} is not what the signed index says: $2"; return 1; }
}

# Downloads PACKAGE (or PACKAGE=VERSION) into target/downloads unless the same file is there, and sets `deb` to its
# path. Its hash is that of the signed index when this returns.
debian_download() { # SUITE ARCHITECTURE PACKAGE WHY
    local suite=$1 arch=$2 package=$3 why=$4 line name version size hash
    debian_suite "$suite" "$arch" || return 1
    line=$(APT_CONFIG=$apt_config apt-get download --print-uris "$package" 2>/dev/null | tail -n 1)
    [ -n "$line" ] || { say "$suite has no package $package ($arch); it is needed for $why"; return 1; }
    read -r _ name size hash _ <<<"$line"
    version=${name#*_}
    version=${version%_*}
    version=${version//%3a/:}
    mkdir -p "$downloads"
    debian_drop_damaged "$downloads/$name" "$hash"
    if [ ! -f "$downloads/$name" ]; then
        say "downloading ${package%%=*} $version from $suite ($(megabytes "$size")): $why"
    fi
    (cd "$downloads" && APT_CONFIG=$apt_config apt-get -q download "$package") >"$target/setup/apt/log" 2>&1 ||
        { say "the download of $package failed: $(grep -m1 '^E:' "$target/setup/apt/log")"; return 1; }
    deb=$downloads/$name
    debian_expect_whole "$deb" "$hash" || return 1
}

# Downloads the upstream source of PACKAGE VERSION into target/downloads unless the same file is there, and sets `tarball` to its
# path. Its hash is that of the signed index when this returns.
debian_source() { # SUITE PACKAGE VERSION WHY
    local suite=$1 package=$2=$3 why=$4 line name size hash
    debian_suite "$suite" source || return 1
    line=$(APT_CONFIG=$apt_config apt-get -q source --tar-only --print-uris "$package" 2>/dev/null | grep "^'" | tail -n 1)
    [ -n "$line" ] || { say "$suite has no source $package; it is needed for $why"; return 1; }
    read -r _ name size hash _ <<<"$line"
    mkdir -p "$downloads"
    debian_drop_damaged "$downloads/$name" "$hash"
    [ -f "$downloads/$name" ] || say "downloading the source of ${package%%=*} ${package#*=} from $suite ($(megabytes "$size")): $why"
    (cd "$downloads" && APT_CONFIG=$apt_config apt-get -q source --download-only --tar-only "$package") >"$target/setup/apt/log" 2>&1 ||
        { say "the download of the source $package failed: $(grep -m1 '^E:' "$target/setup/apt/log")"; return 1; }
    tarball=$downloads/$name
    debian_expect_whole "$tarball" "$hash" || return 1
}

# Name, version and sha256 of a downloaded package, one "key value" per line.
deb_facts() { # DEB
    dpkg-deb -f "$1" Package Version Architecture | sed -E 's/^Package:/name/; s/^Version:/version/; s/^Architecture:/architecture/'
    echo "sha256 $(sha256sum "$1" | cut -d' ' -f1)"
}

# Installs packages on this machine, from its own sources and, if named, one more suite of the Debian mirror, which
# stays out of the machine's configuration: apt gets a private list of sources and a private index.
install_packages() { # WHY SUITE-OR-EMPTY PACKAGE...
    local why=$1 suite=$2 dir=$target/setup/apt/system mirror uris size what
    shift 2
    have apt-get || die "these packages are needed and there is no apt-get here: install $* (for $why), then start again"
    need_root "install $* with apt (for $why)"
    mkdir -p "$dir"/{conf.d,sources.d,lists/partial,cache} "$downloads/system/partial"
    find "$dir/conf.d" "$dir/sources.d" -mindepth 1 -delete
    find /etc/apt/apt.conf.d -maxdepth 1 -type f -exec ln -s -t "$dir/conf.d" {} +
    find /etc/apt/sources.list.d -maxdepth 1 \( -name '*.list' -o -name '*.sources' \) -exec ln -s -t "$dir/sources.d" {} +
    if [ -n "$suite" ]; then
        mirror=$(debian_mirrors | head -n 1)
        [ -n "$mirror" ] || die "no Debian mirror in this machine's apt sources: set DEBIAN_MIRROR to the address of one, then start again"
        printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' "$mirror" "$suite" "$debian_keyring" >"$dir/sources.d/corevisor.sources"
    fi
    rm -f "$dir/conf.d/zz-private.conf" # the link to the system's, as above
    cat >"$dir/conf.d/zz-private.conf" <<EOF
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Dir::State::lists "$dir/lists";
Dir::Cache "$dir/cache";
Dir::Cache::archives "$downloads/system";
Dir::Etc::sourceparts "$dir/sources.d";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::Retries "3";
Dpkg::Options { "--force-confdef"; "--force-confold"; };
DPkg::Lock::Timeout "300";
EOF
    echo "Dir::Etc::parts \"$dir/conf.d\";" >"$dir/apt.conf"
    local apt=(env "APT_CONFIG=$dir/apt.conf" DEBIAN_FRONTEND=noninteractive apt-get -q -y)
    [ -z "$suite" ] || apt+=(-t "$suite")

    # As oneself, so that the index does not become root's.
    "${apt[@]}" update >"$target/setup/apt/log" 2>&1 || true
    uris=$("${apt[@]}" -o Debug::NoLocking=true install --print-uris "$@" 2>"$target/setup/apt/log") ||
        die "apt cannot install $* (for $why): $(grep -m1 '^E:' "$target/setup/apt/log"); install it by hand, then start again"
    uris=$(grep "^'" <<<"$uris" || true)
    size=$(megabytes "$(awk '{ s += $3 } END { print s + 0 }' <<<"$uris")")
    what=$("${apt[@]}" -o Debug::NoLocking=true -s install "$@" 2>/dev/null | sed -nE "s/^Inst ($1) .*\(([^ ]+) .*/\1 \2/p" | head -n 1)
    say "installing ${what:-$1}${suite:+ from $suite} with apt ($size in $(grep -c . <<<"$uris") .deb): $why"
    quietly apt as_root "${apt[@]}" install "$@" ||
        die "apt did not install $* (for $why): repair that by hand, then start again"
}
