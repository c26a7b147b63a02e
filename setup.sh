#!/usr/bin/env bash
# Makes .venv with the pinned requirements, and those of the files that it is given, and
# sees to it that MuJoCo renders without a display. It repeats only what has changed, so
# that make can call it every time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

say() { echo "setup: $*" >&2; }

find_python() {
  # NumPy's pin needs 3.11; TensorFlow's has no wheels for 3.14.
  local check='import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'
  local name
  for name in python3.11 python3.12 python3.13 python3; do
    if "$name" -c "$check" 2> /dev/null; then
      echo "$name"
      return
    fi
  done
  say 'no Python 3.11, 3.12 or 3.13 found; please install one (Debian, Ubuntu:' \
    'python3.11 and python3.11-venv).'
  return 1
}

install_requirements() {
  local file=$1 stamp=.venv/installed-$1 python wanted
  wanted=$(cat requirements.txt "$file")
  if [[ -f $stamp && $(< "$stamp") == "$wanted" ]]; then
    return
  fi
  python=$(find_python)
  say "installing $file into .venv, which takes a few minutes"
  if ! .venv/bin/python -m pip --version > /dev/null 2>&1; then
    "$python" -m venv --clear .venv
  fi
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$file"
  echo "$wanted" > "$stamp"
}

# Prints why nothing renders; prints nothing if something does.
render_error() {
  local output
  if ! output=$(.venv/bin/python -c 'from support.envs import rendering; rendering.choose_renderer()' 2>&1)
  then
    tail -n 1 <<< "$output"
  fi
}

as_root() {
  if [[ $(id -u) == 0 ]]; then
    "$@"
  else
    sudo -n "$@"
  fi
}

install_renderer() {
  local stamp=.venv/renders packages=(libegl1 libopengl0 libgl1-mesa-dri) error
  if [[ $stamp -nt .venv/installed-$1 ]]; then
    return
  fi
  error=$(render_error)
  if [[ $error ]] && { type apt-get && as_root true; } > /dev/null 2>&1; then
    say "installing ${packages[*]}, for rendering without a display"
    # A list that cannot be updated may still be good enough.
    as_root apt-get -qq update || true
    as_root env DEBIAN_FRONTEND=noninteractive \
      apt-get -qq install -y --no-install-recommends "${packages[@]}" \
      > /dev/null || true
    error=$(render_error)
  fi
  if [[ $error ]]; then
    say "no dmc_ task can run here. $error"
  else
    touch "$stamp"
  fi
}

base=requirements.txt
if nvidia-smi > /dev/null 2>&1; then
  base=requirements-gpu.txt
fi
for file in "$base" "$@"; do
  install_requirements "$file"
done
install_renderer "$base"
