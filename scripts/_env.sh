# The project's virtual environment, sourced by the other scripts.
# shellcheck shell=bash
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv

die() {
  echo "${0##*/}: $1" >&2
  exit 1
}

make_venv() {
  [[ -x $venv/bin/python && -x $venv/bin/pip ]] && return
  local python=${PYTHON:-python3}
  command -v "$python" >/dev/null ||
    die "there is no $python here: install Python 3.10 or newer, or name one with PYTHON=/path/to/python"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "Python 3.10 or newer is needed and $python is $("$python" -V 2>&1): name another one with PYTHON=/path/to/python"
  echo "making $venv with $("$python" -V)"
  local dead=
  [[ -e $venv/bin/python ]] || dead=--clear
  "$python" -m venv ${dead:+"$dead"} "$venv" ||
    die "$python cannot make a virtual environment: install its venv module (Debian, Ubuntu: apt-get install python3-venv)"
}

# One stamp per extra, so that scripts/quickstart skips what scripts/test has installed.
install_project() {
  make_venv
  local stamp extra missing=
  stamp=$({ echo "$root"; "$venv/bin/python" -VV; cat "$root/pyproject.toml" "$root/constraints.txt"; } | cksum)
  for extra; do
    [[ $(cat "$venv/ddl-$extra.stamp" 2>/dev/null) == "$stamp" ]] || missing+=${missing:+,}$extra
  done
  [[ $missing ]] || return 0
  echo "installing ddl with the extras $missing into $venv"
  "$venv/bin/python" -m pip install --quiet --upgrade --constraint "$root/constraints.txt" pip
  PYTHONWARNINGS=ignore "$venv/bin/python" -m pip install --quiet --constraint "$root/constraints.txt" --editable "$root[$missing]"
  for extra in ${missing//,/ }; do echo "$stamp" >"$venv/ddl-$extra.stamp"; done
}
