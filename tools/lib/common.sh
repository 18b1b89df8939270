# Shared by the scripts of tools/: where things are, how a step is told, how a failure ends.
# Exit codes are the tools' own: 1 internal, 2 usage or configuration, 3 an input absent, 5 the system failed.
# shellcheck shell=bash disable=SC2034
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
DEPS=$ROOT/.deps
LOGS=$ROOT/build/logs
SCRIPT=tools/$(basename "$0")

# What tools/setup --user unpacked comes first wherever a script of tools/ looks for something.
use_deps() {
  [[ $PATH == "$DEPS/bin:"* ]] || export PATH=$DEPS/bin:$PATH
  [[ :${CMAKE_PREFIX_PATH:-}: == ":$DEPS/usr:"* ]] ||
    export CMAKE_PREFIX_PATH=$DEPS/usr${CMAKE_PREFIX_PATH:+:$CMAKE_PREFIX_PATH}
}
[[ ! -d $DEPS ]] || use_deps

BOLD='' DIM='' GREEN='' RED='' RESET=''
if [[ -t 1 && -z ${NO_COLOR:-} && ${TERM:-dumb} != dumb ]]; then
  BOLD=$'\e[1m' DIM=$'\e[2m' GREEN=$'\e[32m' RED=$'\e[31m' RESET=$'\e[0m'
fi

have() { command -v "$1" >/dev/null 2>&1; }

say() { printf '%s\n' "$*"; }

# die CODE MESSAGE...: one line that says what failed and what to do.
die() {
  local code=$1
  shift
  printf '%s%s: %s%s\n' "$RED" "$SCRIPT" "$*" "$RESET" >&2
  exit "$code"
}

# Prints the script's own head comment as its help.
usage() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; }

# Some locales write the clock with a comma.
seconds_since() { LC_ALL=C awk -v a="${1/,/.}" -v b="${EPOCHREALTIME/,/.}" 'BEGIN { printf "%.1f s", b - a }'; }

# On a terminal, what a long step is doing: seconds so far and the build's own counter.
WATCHER=''
watch_step() {
  local title=$1 start=$SECONDS
  while sleep 1; do
    printf '\r  %s %s%d s %s%s\e[K' "$title" "$DIM" $((SECONDS - start)) \
      "$(tail -c 4000 "$STEP_LOG" | grep -aoE '^\[[0-9]+/[0-9]+\]' | tail -n 1)" "$RESET"
  done
}
stop_watching() {
  [[ -z $WATCHER ]] || kill "$WATCHER" 2>/dev/null || true
  WATCHER=''
}
trap stop_watching EXIT

# try_step TITLE COMMAND...: runs the command with its output in a log; tells the title and how long it took.
STEP_LOG=''
try_step() {
  local title=$1 start=$EPOCHREALTIME status=0
  shift
  mkdir -p "$LOGS"
  STEP_LOG=$LOGS/$(tr -cs '[:alnum:]' - <<<"$title" | cut -c1-40 | sed 's/-*$//').log
  if [[ -n $RESET ]]; then
    : >"$STEP_LOG"
    watch_step "$title" &
    WATCHER=$!
  fi
  printf '  %s ' "$title"
  "$@" >"$STEP_LOG" 2>&1 </dev/null || status=$?
  stop_watching
  [[ -z $RESET ]] || printf '\r  %s \e[K' "$title"
  if ((status == 0)); then
    printf '%s%s%s\n' "$DIM" "$(seconds_since "$start")" "$RESET"
  else
    printf '%sfailed after %s%s\n' "$RED" "$(seconds_since "$start")" "$RESET"
  fi
  return "$status"
}

# step TITLE COMMAND...: the same, and ends the script when the command fails, with the log's end. STEP_REMEDY, if set,
# is what the closing line proposes, and STEP_CODE the exit code in place of the command's own.
STEP_REMEDY='' STEP_CODE=''
step() {
  local status=0
  try_step "$@" || status=$?
  ((status == 0)) && return
  tail -n 25 "$STEP_LOG" | sed 's/^/    | /' >&2
  ((status >= 128)) || status=${STEP_CODE:-$status}
  die "$status" "\"$1\" failed; ${STEP_REMEDY:-mend what the lines above say and run it again}; the whole log: $STEP_LOG"
}

# version_at_least HAVE WANT, both dotted numbers.
version_at_least() { [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

# The C++ compiler: CXX if given, else g++ if new enough, else the newest g++-N. Prints nothing where there is none.
find_compiler() {
  local name
  if [[ -n ${CXX:-} ]]; then
    have "$CXX" || die 2 "CXX=$CXX is not a program; install it or unset CXX (a launcher goes into CMAKE_CXX_COMPILER_LAUNCHER)"
    printf '%s\n' "$CXX"
    return
  fi
  for name in g++ g++-{16..11}; do
    if have "$name" && version_at_least "$("$name" -dumpversion)" 11; then
      printf '%s\n' "$name"
      return
    fi
  done
}

# How many compiler jobs fit: the cores this process may use, and 2 GiB of memory for each.
build_jobs() {
  local cores memory limit quota period
  cores=$(nproc)
  if read -r quota period 2>/dev/null </sys/fs/cgroup/cpu.max && [[ $quota != max ]]; then
    quota=$(((quota + period - 1) / period))
    ((quota < cores)) && cores=$quota
  fi
  memory=$(awk '/^MemAvailable:/ { print int($2 / 1024) }' /proc/meminfo)
  if read -r limit 2>/dev/null </sys/fs/cgroup/memory.max && [[ $limit != max ]]; then
    limit=$((limit / 1048576))
    ((limit < memory)) && memory=$limit
  fi
  ((cores > memory / 2048)) && cores=$((memory / 2048))
  ((cores < 1)) && cores=1
  printf '%s\n' "$cores"
}
