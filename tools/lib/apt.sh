# Two ways to the distribution's packages: installed by apt-get, or unpacked into .deps/ without root.
# shellcheck shell=bash

CMAKE_VERSION=3.31.6
NINJA_VERSION=1.11.1.4

# Runs apt-get with root's rights and without questions. sudo drops the environment, so the proxies are handed over.
as_root() {
  local keep=(DEBIAN_FRONTEND=noninteractive) name
  for name in http_proxy https_proxy ftp_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
    [[ -n ${!name:-} ]] && keep+=("$name=${!name}")
  done
  if ((EUID == 0)); then
    env "${keep[@]}" "$@"
  else
    sudo env "${keep[@]}" "$@"
  fi
}

apt_get() { as_root apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 "$@"; }

# The lists are fetched only where they are absent or too old for the packages.
apt_install() {
  say "Installing with apt-get: $*"
  if ((EUID != 0)) && ! sudo -n true 2>/dev/null; then
    say "  sudo asks for your password:"
    sudo -v || die 2 "sudo refused; run: $SCRIPT --user, which needs no rights"
  fi
  STEP_REMEDY="check the network and the proxy variables" STEP_CODE=5
  local install=(apt_get install -y --no-install-recommends "$@")
  if apt_knows "$@"; then
    try_step "installing the packages" "${install[@]}" && return
  fi
  step "reading the package lists" apt_get update
  apt_knows "$@" ||
    die 5 "apt-get has no way to install: $*; on Ubuntu, enable the universe component (add-apt-repository universe)"
  step "installing the packages" "${install[@]}"
}

apt_knows() { apt-get -s --no-install-recommends install "$@" >/dev/null 2>&1; }

# ---- without root -------------------------------------------------------------------------------------------------

system_apt() { apt-get -q -o Debug::NoLocking=1 -o Acquire::Retries=3 "$@"; }

# The same over lists and a cache of our own, where the system's lists are absent or too old.
user_apt() {
  system_apt -o Dir::State::Lists="$DEPS/apt/lists" -o Dir::Cache="$DEPS/apt/cache" -o Acquire::Languages=none "$@"
}

user_apt_update() {
  mkdir -p "$DEPS/apt/lists/partial" "$DEPS/apt/cache/archives/partial"
  user_apt update
}

# What apt would install for these packages, less the C and C++ libraries that belong to the compiler in use.
closure() {
  "$1" -s --no-install-recommends install "${@:2}" 2>/dev/null | awk '$1 == "Inst" { print $2 }' |
    grep -vE '^(libc6|libc-|libc-dev-bin|linux-libc-dev|libcrypt|libnsl|libtirpc|rpcsvc|libstdc\+\+|libgcc|gcc|g\+\+|cpp|binutils|lib(gomp|itm|atomic|asan|lsan|tsan|ubsan|quadmath))'
}

unpack_packages() {
  local apt=$1 names deb
  shift
  mapfile -t names < <(closure "$apt" "$@")
  ((${#names[@]})) || return 1
  mkdir -p "$DEPS/debs" && rm -f "$DEPS"/debs/*.deb
  (cd "$DEPS/debs" && "$apt" download "${names[@]}") || return
  for deb in "$DEPS"/debs/*.deb; do
    dpkg-deb -x "$deb" "$DEPS" || return
  done
  rm -rf "$DEPS/debs"
}

# A development package holds links to run-time libraries; where the system has those already, apt fetched none.
link_system_libraries() {
  local folder file name arch
  arch=$(multiarch "$(find_compiler)")
  folder=$DEPS/usr/lib/$arch
  libraries | while read -r _ _ name; do
    for file in "/usr/lib/$arch/lib$name.so".*; do
      [[ ! -e $file || -e $folder/${file##*/} ]] || ln -sf "$file" "$folder/"
    done
  done
}

unpack_user_packages() {
  local program
  if ! apt_knows "$@" || ! unpack_packages system_apt "$@"; then
    user_apt_update && unpack_packages user_apt "$@" || return
    rm -rf "$DEPS/apt"
  fi
  link_system_libraries
  # What came beside the libraries to be run (unzip, xz).
  for program in "$DEPS"/usr/bin/{unzip,xz}; do
    [[ ! -x $program ]] || ln -sf "../usr/bin/${program##*/}" "$DEPS/bin/"
  done
}

# CMake and Ninja as PyPI has them: wheels unpacked into .deps/pypi, the programs linked into .deps/bin.
# user_tool PROJECT VERSION WHEEL SHA256 FOLDER-OF-PROGRAMS: what is in that folder of the wheel is what runs.
user_tool() {
  local project=$1 version=$2 wheel=$3 sha=$4 programs=$5 program
  fetch_wheel "$project" "$version" "$wheel" "$sha" "$DEPS/wheels" || return
  unzip_into "$DEPS/wheels/$wheel" "$DEPS/pypi" || return
  rm -rf "$DEPS/wheels"
  mkdir -p "$DEPS/bin"
  for program in "$DEPS/pypi/$programs"/*; do
    chmod +x "$program" || return
    ln -sf "../pypi/$programs/${program##*/}" "$DEPS/bin/"
  done
}

user_cmake() {
  local platform sha
  case $(uname -m) in
    x86_64) platform=x86_64 sha=1c8b05df0602365da91ee6a3336fe57525b137706c4ab5675498f662ae1dbcec ;;
    aarch64) platform=aarch64 sha=42d9883b8958da285d53d5f69d40d9650c2d1bcf922d82b3ebdceb2b3a7d4521 ;;
    *) say "no CMake wheel for $(uname -m); install cmake $CMAKE_OLDEST or newer" >&2 && return 2 ;;
  esac
  user_tool cmake "$CMAKE_VERSION" \
    "cmake-$CMAKE_VERSION-py3-none-manylinux_2_17_$platform.manylinux2014_$platform.whl" "$sha" cmake/data/bin
}

user_ninja() {
  local platform sha
  case $(uname -m) in
    x86_64) platform=manylinux_2_12_x86_64.manylinux2010_x86_64 sha=096487995473320de7f65d622c3f1d16c3ad174797602218ca8c967f51ec38a0 ;;
    aarch64) platform=manylinux_2_17_aarch64.manylinux2014_aarch64 sha=d3090d4488fadf6047d0d7a1db0c9643a8d391f0d94729554dbb89b5bdc769d7 ;;
    *) say "no Ninja wheel for $(uname -m); install ninja" >&2 && return 2 ;;
  esac
  user_tool ninja "$NINJA_VERSION" "ninja-$NINJA_VERSION-py3-none-$platform.whl" "$sha" \
    "ninja-$NINJA_VERSION.data/scripts"
}

# user_install PACKAGES...: everything into .deps/, nothing outside it.
user_install() {
  local packages=("$@")
  mkdir -p "$DEPS/bin"
  use_deps
  say "Installing into .deps/ (no root needed):"
  # CMake's wheel is a zip: without python3 its unpacker comes from the distribution too.
  has_cmake || have python3 || have unzip || packages+=(unzip)
  has_xz || packages+=(xz-utils)
  STEP_REMEDY="check the network and the proxy variables" STEP_CODE=5
  ((${#packages[@]} == 0)) || step "unpacking ${packages[*]}" unpack_user_packages "${packages[@]}"
  has_cmake || step "CMake $CMAKE_VERSION from PyPI" user_cmake
  has_ninja || step "Ninja $NINJA_VERSION from PyPI" user_ninja
}
