# Wheels from PyPI: through pip where there is one (its own settings hold), else through curl, else through python3.
# shellcheck shell=bash

have_pip() { have python3 && python3 -m pip --version >/dev/null 2>&1; }

# A value of pip's settings as a shell can know it where pip itself is absent: environment, then its files.
pip_setting() {
  local variable file
  variable=PIP_$(tr 'a-z-' 'A-Z_' <<<"$1")
  if [[ -n ${!variable:-} ]]; then
    printf '%s\n' "${!variable}"
    return
  fi
  for file in "${PIP_CONFIG_FILE:-}" "${XDG_CONFIG_HOME:-${HOME:-/}/.config}/pip/pip.conf" "${HOME:-/}/.pip/pip.conf" \
    /etc/xdg/pip/pip.conf /etc/pip.conf; do
    [[ -f $file ]] || continue
    sed -n "s/^[[:space:]]*$1[[:space:]]*=[[:space:]]*//p" "$file" | head -n 1 | grep . && return
  done
  return 0
}

# http_get URL FILE: curl or python3, both of which follow the proxy variables.
http_get() {
  local url=$1 file=$2 proxy cert options=()
  proxy=$(pip_setting proxy)
  cert=$(pip_setting cert)
  if have curl; then
    [[ -n $proxy ]] && options+=(--proxy "$proxy")
    [[ -n $cert ]] && options+=(--cacert "$cert")
    curl -fsSL --retry 3 --connect-timeout 30 "${options[@]}" -o "$file" "$url"
    return
  fi
  [[ -n $proxy ]] && export https_proxy=$proxy http_proxy=$proxy
  [[ -n $cert ]] && export SSL_CERT_FILE=$cert
  python3 - "$url" "$file" <<'PYTHON'
import shutil, sys, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=60) as source, open(sys.argv[2], "wb") as target:
    shutil.copyfileobj(source, target)
PYTHON
}

check_sha256() {
  local got
  got=$(sha256sum "$1" | cut -d ' ' -f 1)
  [[ $got == "$2" ]] || {
    say "$1: sha256 is $got, wanted $2; remove the file and try again" >&2
    return 1
  }
}

# fetch_wheel PROJECT VERSION WHEEL SHA256 FOLDER: FOLDER/WHEEL, checked.
fetch_wheel() {
  local project=$1 version=$2 wheel=$3 sha=$4 folder=$5 index page link
  mkdir -p "$folder"
  if have_pip; then
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$folder" \
      "$project==$version" || return
  else
    index=$(pip_setting index-url)
    index=${index:-https://pypi.org/simple}
    page=${index%/}/$project/
    http_get "$page" "$folder/index.html" || return
    link=$(grep -oE "href=\"[^\"#]*/?$wheel(#[^\"]*)?\"" "$folder/index.html" | head -n 1 | cut -d '"' -f 2 | sed 's/#.*//')
    [[ -n $link ]] || {
      say "$page does not list $wheel; set PIP_INDEX_URL to an index that does" >&2
      return 1
    }
    case $link in
      http*) ;;
      /*) link=$(grep -oE '^https?://[^/]+' <<<"$page")$link ;;
      *) link=$page$link ;;
    esac
    http_get "$link" "$folder/$wheel.part" && mv "$folder/$wheel.part" "$folder/$wheel" || return
  fi
  [[ -f $folder/$wheel ]] || {
    say "$folder: $project $version came as $(ls "$folder"), wanted $wheel; set PIP_INDEX_URL to PyPI" >&2
    return 1
  }
  check_sha256 "$folder/$wheel" "$sha"
}

# unzip_into FILE FOLDER: a wheel is a zip; one of these unpackers is always there or can be had.
unzip_into() {
  mkdir -p "$2"
  if have cmake; then
    (cd "$2" && cmake -E tar xf "$1")
  elif have python3; then
    python3 -m zipfile -e "$1" "$2"
  else
    unzip -q -o "$1" -d "$2"
  fi
}
