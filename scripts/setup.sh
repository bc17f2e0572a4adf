#!/usr/bin/env bash
# Make the environment in .venv and build the ROS interfaces into it; `setup.sh tests` adds what the tests need.
# Install system packages where that is allowed. Do nothing where everything is up to date.
set -euo pipefail
cd "$(dirname "$0")/.."

DEMO_PACKAGES="g++ cmake python3-venv python3-dev libegl1 libgl1 libgl1-mesa-dri"
TEST_PACKAGES="chromium"
LOGS=out/setup

say() { echo "mirage: $1"; }

fail() {
  echo "mirage: $1" >&2
  exit 1
}

hash_of() { sha256sum "$@" | sha256sum | cut -c1-16; }

# --- the system ---------------------------------------------------------------------------------

find_python() {
  for python in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
    if [ -n "$python" ] && "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      echo "$python"
      return
    fi
  done
}

has_library() { PATH=$PATH:/sbin:/usr/sbin ldconfig -p | grep -q -F "$1"; }

has_headers() {
  "$1" -c 'import os.path, sysconfig; raise SystemExit(not os.path.isfile(sysconfig.get_path("include") + "/Python.h"))'
}

# Print what the system lacks, a name each.
missing_for_demo() {
  local python
  python=$(find_python)
  if [ -z "$python" ]; then
    echo 'Python 3.11 to 3.13'
  else
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo "the venv module of $python"
    has_headers "$python" || echo "the headers of $python"
  fi
  command -v "${CXX:-c++}" > /dev/null || echo 'a C++ compiler'
  command -v cmake > /dev/null || echo 'CMake'
  has_library libEGL.so.1 || echo 'EGL'
}

missing_for_tests() { command -v chromium > /dev/null || echo 'Chromium'; }

# install_system_packages MISSING PACKAGE...: by apt-get where that needs no password, else name the command.
install_system_packages() {
  local missing=$1 administrator=()
  shift
  local advice="on Debian or Ubuntu: sudo apt-get install --no-install-recommends $*"
  if [ "$(id -u)" != 0 ]; then
    administrator=(sudo -n)
    sudo -n true 2> /dev/null || fail "missing: $missing; $advice"
  fi
  command -v apt-get > /dev/null || fail "missing: $missing; $advice"
  say "missing: $missing; installing $*"
  mkdir -p $LOGS
  { "${administrator[@]}" apt-get update \
    && "${administrator[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; } \
    > $LOGS/system.log 2>&1 || fail "apt-get failed, see $LOGS/system.log; $advice"
}

# need FUNCTION PACKAGE...: install the packages if the function prints anything; fail if it still does.
need() {
  local list=$1 missing
  shift
  missing=$($list | paste -sd, | sed 's/,/, /g')
  [ -n "$missing" ] || return 0
  install_system_packages "$missing" "$@"
  missing=$($list | paste -sd, | sed 's/,/, /g')
  [ -z "$missing" ] || fail "still missing after apt-get: $missing; a Python of another place is named by PYTHON=..."
}

# --- pip ----------------------------------------------------------------------------------------

count_installed() { find .venv/lib -maxdepth 3 -name '*.dist-info' | wc -l; }

# Turn pip's output into a line for each package, then a count while they are unpacked.
show_progress() {
  local line size number=0 counter=
  while IFS= read -r line; do
    case $line in
      Collecting\ *)
        number=$((number + 1))
        line=${line#Collecting }
        printf '  %3d  %s\n' $number "${line%% (from*}" ;;
      *Downloading\ *" MB)")
        size=${line##*(}
        [ ${#size} -lt 8 ] || printf '       downloading %s\n' "${size%)}" ;;
      Installing\ collected\ packages:*)
        number=$(tr -cd , <<< "$line" | wc -c)
        [ "$number" -gt 20 ] || continue
        say "unpacking $((number + 1)) packages (a minute or two)"
        (while sleep 10; do echo "  $(count_installed) packages are in .venv"; done) &
        counter=$! ;;
    esac
  done
  [ -z "$counter" ] || kill $counter
}

install_requirements() {
  mkdir -p $LOGS
  .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off "$@" 2>&1 \
    | tee $LOGS/pip.log | show_progress \
    || { grep '^ERROR' $LOGS/pip.log | tail -5 >&2 || true; fail "pip failed, see $LOGS/pip.log"; }
}

# --- the environment ----------------------------------------------------------------------------

pinned=(requirements/model.txt requirements/system.txt requirements/build.txt requirements/dev.txt)
wanted=$(hash_of "${pinned[@]}")
if [ "$(cat .venv/.mirage-requirements 2>/dev/null)" != "$wanted" ]; then
  need missing_for_demo $DEMO_PACKAGES
  [ -x .venv/bin/python ] || "$(find_python)" -m venv .venv
  say "installing about 300 Python packages into .venv (once; four minutes on a fast line)"
  install_requirements "${pinned[@]/#/-r}"
  echo "$wanted" > .venv/.mirage-requirements
fi

wanted=$(hash_of package.xml CMakeLists.txt setup.py pyproject.toml $(find cmake msg srv action -type f | LC_ALL=C sort) .venv/.mirage-requirements)
if [ "$(cat .venv/.mirage-interfaces 2>/dev/null)" != "$wanted" ]; then
  need missing_for_demo $DEMO_PACKAGES
  version=$(cmake --version | sed -n 's/cmake version //p')
  [ "$(printf '%s\n' 3.24 "$version" | sort -V | head -1)" = 3.24 ] \
    || fail "CMake $version is too old to build the ROS interfaces: 3.24 or newer is needed"
  say "building the ROS interfaces (half a minute)"
  mkdir -p $LOGS
  .venv/bin/python -m pip install --disable-pip-version-check --no-build-isolation --no-deps -e . \
    > $LOGS/interfaces.log 2>&1 \
    || { tail -40 $LOGS/interfaces.log; fail "the ROS interfaces could not be built, see $LOGS/interfaces.log"; }
  echo "$wanted" > .venv/.mirage-interfaces
fi

if [ "${1:-}" = tests ]; then
  need missing_for_demo $DEMO_PACKAGES
  need missing_for_tests $TEST_PACKAGES
  wanted=$(hash_of requirements/numpy1.txt scripts/setup.sh .venv/.mirage-requirements)
  if [ "$(cat .venv-numpy1/.mirage-requirements 2>/dev/null)" != "$wanted" ]; then
    say "adding numpy 1.26 for the second run of the tests, in .venv-numpy1 (once)"
    .venv/bin/python -m venv --clear --without-pip .venv-numpy1
    over=$(.venv-numpy1/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    install_requirements --no-deps --target "$over" -r requirements/numpy1.txt
    # programs that tests start find the package as those of .venv do
    { pwd; .venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; } > "$over/mirage.pth"
    echo "$wanted" > .venv-numpy1/.mirage-requirements
  fi
fi
