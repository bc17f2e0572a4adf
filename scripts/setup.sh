#!/usr/bin/env bash
# Makes the environment in .venv and builds the ROS interfaces into it. Does nothing where both are up to date.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
  echo "mirage: $1" >&2
  echo "mirage: on Debian or Ubuntu: apt-get install g++ cmake python3-venv python3-dev libegl1 libgl1 libgl1-mesa-dri chromium" >&2
  exit 1
}

hash_of() { sha256sum "$@" | sha256sum | cut -c1-16; }

find_python() {
  for python in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
    if [ -n "$python" ] && "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      echo "$python"
      return
    fi
  done
  fail 'Python 3.11, 3.12 or 3.13 is needed and none was found; name one with PYTHON=...'
}

wanted=$(hash_of requirements/model.txt requirements/system.txt requirements/build.txt requirements/dev.txt)
if [ "$(cat .venv/.mirage-requirements 2>/dev/null)" != "$wanted" ]; then
  python=$(find_python)
  [ -x .venv/bin/python ] || "$python" -m venv .venv || fail "$python has no venv module"
  echo "mirage: installing into .venv (once)"
  .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off \
    -r requirements/model.txt -r requirements/system.txt -r requirements/build.txt -r requirements/dev.txt \
    | { grep -E '^(Collecting|Installing collected|Successfully)' || true; } | cut -c1-100
  echo "$wanted" > .venv/.mirage-requirements
fi

wanted=$(hash_of package.xml CMakeLists.txt setup.py $(find cmake msg srv action -type f | LC_ALL=C sort) .venv/.mirage-requirements)
if [ "$(cat .venv/.mirage-interfaces 2>/dev/null)" != "$wanted" ]; then
  command -v "${CXX:-c++}" > /dev/null || fail 'a C++ compiler is needed to build the ROS interfaces'
  command -v cmake > /dev/null || fail 'CMake 3.24 or newer is needed to build the ROS interfaces'
  headers=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')
  [ -f "$headers/Python.h" ] || fail "Python's headers are needed to build the ROS interfaces"
  version=$(cmake --version | sed -n 's/cmake version //p')
  [ "$(printf '%s\n' 3.24 "$version" | sort -V | head -1)" = 3.24 ] \
    || fail "CMake 3.24 or newer is needed, this is $version"
  echo "mirage: building the ROS interfaces (half a minute)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e . \
    > .venv/mirage-build.log 2>&1 || { cat .venv/mirage-build.log; fail 'the interfaces could not be built'; }
  echo "$wanted" > .venv/.mirage-interfaces
fi

if [ "${1:-}" = numpy1 ]; then
  PATH=$PATH:/sbin:/usr/sbin ldconfig -p | grep 'libEGL\.so\.1' > /dev/null \
    || fail 'EGL is needed to draw the simulated rooms that the tests record'
  command -v chromium > /dev/null || fail 'Chromium is needed to open the reports that the tests make'
  wanted=$(hash_of requirements/numpy1.txt .venv/.mirage-requirements)
  if [ "$(cat .venv-numpy1/.mirage-requirements 2>/dev/null)" != "$wanted" ]; then
    echo "mirage: laying numpy 1.26 over .venv in .venv-numpy1 (once)"
    .venv/bin/python -m venv --clear --without-pip .venv-numpy1
    over=$(.venv-numpy1/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target "$over" -r requirements/numpy1.txt
    .venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$over/mirage.pth"
    echo "$wanted" > .venv-numpy1/.mirage-requirements
  fi
fi
