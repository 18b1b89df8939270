# What the build needs, and whether it is there: found by looking for files, so that a complete machine costs no time.
# shellcheck shell=bash

CMAKE_OLDEST=3.22

# One line a library: its package on Debian 12, 13 and Ubuntu 22.04, 24.04 (the same name on all), its header, its
# library file ("-" for header-only ones).
libraries() {
  cat <<'TABLE'
libyaml-cpp-dev yaml-cpp/yaml.h yaml-cpp
libsimdjson-dev simdjson.h simdjson
nlohmann-json3-dev nlohmann/json.hpp -
libpcre2-dev pcre2.h pcre2-8
libgtest-dev gtest/gtest.h gtest_main
TABLE
}

multiarch() {
  local compiler=$1 name=
  [[ -n $compiler ]] && name=$("$compiler" -print-multiarch 2>/dev/null)
  printf '%s\n' "${name:-$(uname -m)-linux-gnu}"
}

# has_library HEADER LIBRARY ARCH: in any prefix where CMake will look.
has_library() {
  local header=$1 library=$2 arch=$3 prefix lib file prefixes
  IFS=':;' read -ra prefixes <<<"/usr:/usr/local:${CMAKE_PREFIX_PATH:-}"
  for prefix in "${prefixes[@]}"; do
    [[ -n $prefix && -e $prefix/include/$header ]] || continue
    [[ $library == - ]] && return
    for lib in "$prefix/lib" "$prefix/lib64" "$prefix/lib/$arch"; do
      for file in "$lib/lib$library".{so,a}; do
        [[ -e $file ]] && return
      done
    done
  done
  return 1
}

# The packages of the libraries that are not there, one a line.
missing_libraries() {
  local package header library arch
  arch=$(multiarch "$(find_compiler)")
  libraries | while read -r package header library; do
    has_library "$header" "$library" "$arch" || printf '%s\n' "$package"
  done
}

has_cmake() {
  local line
  have cmake && read -r _ _ line < <(cmake --version) && version_at_least "${line%%-*}" "$CMAKE_OLDEST"
}

has_ninja() { have ninja; }

# The tests' larger files are packed.
has_xz() { have xz; }

has_download() { have curl || have python3; }
