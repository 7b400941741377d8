# Sourced by scripts that fetch what some tests need, after they have set
#   missing  what is not there if the script fails, as the beginning of a sentence
# It removes the folder `work` at the end. A failure is none of the check's, but with CI=true: the tests that need what is
# missing are listed as skipped then.
set -euo pipefail

work=
obstacle=
finish() {
  local status=$?
  [ -z "$work" ] || rm -rf "$work"
  if [ "$status" -ne 0 ] && [ "$status" -lt 128 ]; then
    echo "$missing: ${obstacle:-see above}." >&2
    if [ "${CI:-}" != true ]; then
      echo "Tests that need them are skipped." >&2
      status=0
    fi
  fi
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
  obstacle=$1
  exit 1
}
