# shellcheck shell=bash
# Functions that the node's environment has would change what the commands below do: bash -p takes none. BASH_ENV has been read. One of
# them may be called exec: in posix mode the shell's own comes first.
if [[ "$-" != *p* && "${BASH_SOURCE[0]:-}" == "$0" ]]; then
  POSIXLY_CORRECT=1
  \exec "$BASH" -p "$0" "$@"
fi
set +o posix # POSIXLY_CORRECT asks for it, and older versions then refuse < <(...)
set -euo pipefail
export -n SHELLOPTS BASHOPTS # else every bash program of the work would get these options
umask u=rwx                  # this job must be able to read what it writes; what others may do stays as it is set
IFS=$' \t\n'
FUNCNEST=0  # no limit
unset TMOUT # of hardened sites: "read" would give up after so many seconds, in the middle of a delivery for example
export LC_ALL=C
export PATH="${PATH:+$PATH:}/usr/local/bin:/usr/bin:/bin" # some sites have an empty PATH
# Of XRootD's clients: their own patience is half an hour for a request.
export XRD_CONNECTIONWINDOW="${XRD_CONNECTIONWINDOW:-20}" XRD_CONNECTIONRETRY="${XRD_CONNECTIONRETRY:-1}" \
  XRD_REQUESTTIMEOUT="${XRD_REQUESTTIMEOUT:-300}"
# These read options from the environment, too: those of a node could keep outputs out of a tarball. The work's programs see them.
tar() (unset TAR_OPTIONS GZIP && exec tar "$@")
gzip() (unset GZIP && exec gzip "$@")
grep() (unset GREP_OPTIONS && exec grep "$@")
