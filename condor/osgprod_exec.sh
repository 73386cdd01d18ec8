#!/bin/bash -p
#
# osgprod_exec.sh <cluster> <process> [<ncpus>]: runs a slice, or several. For each it asks the server for a work script,
# runs the script while it sends heartbeats, packs the outputs into job_<cluster>_<process>.tar.gz, delivers them, and
# reports the exit code.
# It runs on grid nodes that nobody here controls: it needs bash 4.2, curl 7.29, tar and gzip. (/bin/bash, since
# "env bash" finds none where PATH is empty. -p: functions, BASH_ENV and options of the shell that the node's environment
# has would change what these commands do.)
#
# Environment (osgprod.sub sets it):
#     OSGPROD_URL         the server, like https://host/osgprod
#     OSGPROD_PROJECT     the project
#     OSGPROD_MAGIC       its secret; or OSGPROD_MAGIC_FILE, a file that holds it: line ends at its end don't count.
#                         Without both a bearer token is sent
#     OSGPROD_JOB_KEY     a random word that the job keeps over restarts: it proves to the server that it is the same job
#     OSGPROD_OUTPUT_URL  folder for the tarball; default: it stays here for HTCondor. Schemes: http, https, dav, davs,
#                         root, roots, xroot, xroots, osdf, pelican, file:///, or an absolute path
#     OSGPROD_CONTAINER   command before the work script, like "apptainer exec image.sif"; {} stands for the folder that
#                         must be visible in the container at the same path, and to which the command must change
#     OSGPROD_SLICES      how many slices the job processes at most, one after the other [1 to 100000; default 1]
#     OSGPROD_TRIES       attempts of a request, or of a delivery [1 to 1000; default 10]
#     OSGPROD_BACKOFF_MS  pause after the first attempt; doubled each time, up to 32 fold [ms, 1 to 600000; default 1000]
#     OSGPROD_MAX_WAIT_S  how long to wait when work may be requeued [s, 0 to 604800; default 600]; 0 = end at once, as
#                         when no work is left
#     OSGPROD_TIME_LEFT_S how long the job may run since HTCondor started it here, if the ads don't say it, or say more [s,
#                         0 to 999999999]
#     OSGPROD_MAX_LOG_BYTES  how much of the work's output to print, of all slices in sum: the head and the tail for
#                         each [bytes, 0 to 999999999; default 10000000]
#     OSGPROD_CHECKPOINT_CODE  exit code with which HTCondor saves this folder and starts the job again in it: for a
#                         tarball that could not be delivered, or that must be safe before its report [3 to 125,
#                         but not 10, 20, 30 or 40; default 0 = none]
#     OSGPROD_SITE        name of the site, for the record [default: the one in HTCondor's machine ad]
#     OSGPROD_TOKEN_HOSTS hosts that may see the job's credentials, like "door2.site.org pool.site.org:8443", beside those that
#                         OSGPROD_URL, OSGPROD_OUTPUT_URL and the project's settings name [default: none]
#     BEARER_TOKEN ...    see find_token
# HTCondor's job ad says which access point the job comes from, and when it was submitted there. The server gives no more
# work than fits until the job must end: by GLIDEIN_ToDie of the machine ad (else GLIDEIN_ToRetire), AllowedJobDuration,
# AllowedExecuteDuration or OSGPROD_TIME_LEFT_S, whichever comes first. When nothing fits, the job ends with 0.
#
# The tarball of a job's nth attempt, n > 1, is job_<cluster>_<process>.<n>.tar.gz; that of a failed one failed_job_...
# Each start on a slice is an attempt. Delivered, its name also tells the job's queue:
# job_<cluster>_<process>.<access point>.<time of submission>.tar.gz.
# A name in this folder that another job's file has gets a random word in front of .tar.gz.
# Until the server has accepted the report it is called unreported_job_<cluster>_<process>.<project>.tar.gz, with a file
# .report beside it: a job that
# starts again in the same folder delivers and reports it, and computes nothing. What counts is what the server lists.
#
# With OSGPROD_SLICES the job asks for another slice after each success. Without OSGPROD_OUTPUT_URL it ends with
# OSGPROD_CHECKPOINT_CODE before it reports a success: HTCondor saves the tarball, and the job goes on. An eviction, or a
# machine that is lost while the tarball comes home, then loses no tarball of a slice that the server calls done. Without
# OSGPROD_OUTPUT_URL a job of HTCondor that starts again after its slice was completed ends with 40, unless its tarball
# is here.
#
# Exit codes, for HTCondor (osgprod.sub says what becomes of the job): 0 done, or nothing to do; 10 the slice failed, maybe
# its data, or another attempt was faster; 20 this node's fault; 30 the server or the storage is away, or no work yet; 40 refused or misconfigured,
# or a tarball may be lost; 143 stopped by a signal (nothing reported, the restarted job gets its slice back). Of several slices the last one decides,
# except that a job that has processed a slice and gets no other, for any reason, ends with 0.
#
# A job that is killed by SIGKILL before its heartbeats begin leaves its folder, osgprod.<12 hexadecimal digits>. HTCondor removes it with
# the job's own folder.
#
# Made of: condor/lib/head.bash worker/lib/shell.bash worker/lib/log.bash worker/lib/settings.bash worker/lib/text.bash worker/lib/backoff.bash worker/lib/url.bash worker/lib/token.bash worker/lib/http.bash worker/lib/adler32.bash condor/lib/process.bash condor/lib/server.bash condor/lib/work.bash condor/lib/outputs.bash condor/lib/storage.bash condor/lib/deliver.bash condor/lib/finish.bash condor/lib/main.bash

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

# --- log and exit ------------------------------------------------------------------------------------------------

log_name=osgprod # the script, and the job when it has one: begins each log line

# Writes one line to the standard error output. Control characters become "?": the text may come from a stranger's
# server. A full disk or a closed pipe there stops nothing.
log() {
  local text="$*"
  TZ=UTC0 printf '%(%Y-%m-%dT%H:%M:%SZ)T %s: %s\n' -1 "$log_name" "${text//[[:cntrl:]]/?}" >&2 || true
}

# Logs a message and ends the script. Arguments: exit code, message
die() {
  log "$2"
  exit "$1"
}

size_of="" # as the function of this name has set it

# Sets size_of to the size of a file [bytes]. Argument: file
size_of() {
  size_of="$(exec wc -c <"$1")"
}

# Removes a file or folder with all that is in it, also in folders that may not be written, as copies of CVMFS's are. It
# leaves files that can't be removed, and the files of a file system that the work has mounted there: storage, for example.
# Argument: absolute path
remove_tree() {
  if ! is_mount_point "$1" && ! find "$1" -xdev -delete 2>/dev/null && [[ -e "$1" ]]; then
    make_writable "$1"
    find "$1" -xdev -delete 2>/dev/null || true
  fi
  [[ ! -e "$1" ]] || log "$1 stays: something is mounted there, or may not be removed"
}

# Makes all folders in a folder writable, but none of another file system. Argument: folder
make_writable() {
  find "$1" -xdev -type d ! -perm -700 -exec chmod u+rwx {} \; 2>/dev/null || true
}

# Makes all folders and files in a folder that this user owns readable for this user, but none of another file system. Argument: folder
make_readable() {
  find "$1" -xdev \( -type d ! -perm -700 -o -type f ! -perm -400 \) -exec chmod u+rwX {} \; 2>/dev/null || true
}

# Is a path the root of another file system than the folder that it is in? Argument: absolute path
is_mount_point() {
  local devices
  [[ -e "$1" ]] || return 1
  devices="$(exec stat -c %d "$1" "${1%/*}/" 2>/dev/null)" || true
  [[ "$devices" != "${devices%%$'\n'*}"$'\n'"${devices%%$'\n'*}" ]]
}

# --- settings ----------------------------------------------------------------------------------------------------

setting_error="" # what number_setting says of a setting that is wrong

# Sets a variable to the number that a variable of the environment holds, or to its default when that is unset or empty. Fails,
# and sets setting_error to the rule, when it holds anything but a whole number in the range.
# Arguments: name in the environment, default, least, greatest (inclusive, at most 9 digits), the variable to set
number_setting() {
  local text="${!1:-$2}"
  if [[ ! "$text" =~ ^[0-9]{1,9}$ ]] || ((10#$text < $3 || 10#$text > $4)); then
    setting_error="$1 is '${text:0:40}': it must be a whole number from $3 to $4, without a unit"
    return 1
  fi
  printf -v "$5" '%d' "$((10#$text))"
}

# --- text --------------------------------------------------------------------------------------------------------

# One character of UTF-8 that isn't a control character, as bytes.
readonly UTF8_CHARACTER=$'^([ -~]|\xc2[\xa0-\xbf]|[\xc3-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf][\x80-\xbf]|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf][\x80-\xbf]|[\xf1-\xf3][\x80-\xbf][\x80-\xbf][\x80-\xbf]|\xf4[\x80-\x8f][\x80-\xbf][\x80-\xbf])'

plain_text="" # as the function of this name has set it

# Sets plain_text to the first characters of a text as valid UTF-8: bytes that are none, and control characters, are left out.
# Arguments: greatest number of characters, text
plain_text() {
  local text="$2" plain="" count=0
  if [[ "$text" != *[!' '-'~']* ]]; then # the usual case
    plain_text="${text:0:$1}"
    return 0
  fi
  while [[ -n "$text" ]] && ((count < $1)); do
    if [[ "$text" =~ $UTF8_CHARACTER ]]; then
      plain+="${BASH_REMATCH[0]}"
      text="${text:${#BASH_REMATCH[0]}}"
      count=$((count + 1))
    else
      text="${text:1}"
    fi
  done
  plain_text="$plain"
}

# --- backoff -----------------------------------------------------------------------------------------------------

# Prints how long to wait before the next attempt [s, with 3 decimals]: doubled with each attempt, up to 32 fold, and
# with a random part of up to a half, so that jobs don't return all at once.
# Arguments: number of the attempt that failed (from 1), first pause [ms], least pause that the server wants [s; 0],
#            greatest pause that it may want [s; 300]
backoff() {
  local attempt="$1" ms="$2" wanted_s="${3:-0}" greatest_s="${4:-300}"
  ms=$((ms * (1 << (attempt > 6 ? 5 : attempt - 1))))
  [[ "$wanted_s" =~ ^[0-9]{1,9}$ ]] || wanted_s=0 # a date, for example
  wanted_s=$((10#$wanted_s > greatest_s ? greatest_s : 10#$wanted_s))
  ((ms >= wanted_s * 1000)) || ms=$((wanted_s * 1000))
  ms=$((ms + RANDOM % (ms / 2 + 1)))
  printf '%d.%03d' "$((ms / 1000))" "$((ms % 1000))"
}

# --- URLs --------------------------------------------------------------------------------------------------------

url_kind="" # as the function of this name has set it

# The table of URL schemes. Sets url_kind to the kind of client that a URL needs: http (curl), root (XRootD), pelican, or file
# for a path of this node. Fails for any other scheme, for a relative path, and for a URL with a control character.
# Argument: URL
url_kind() {
  [[ ! "$1" =~ [[:cntrl:]] ]] || return 1
  case "$1" in
  [Hh][Tt][Tt][Pp]://?* | [Hh][Tt][Tt][Pp][Ss]://?* | [Dd][Aa][Vv]://?* | [Dd][Aa][Vv][Ss]://?*) url_kind=http ;;
  [Rr][Oo][Oo][Tt]://?* | [Rr][Oo][Oo][Tt][Ss]://?* | [Xx][Rr][Oo][Oo][Tt]://?* | [Xx][Rr][Oo][Oo][Tt][Ss]://?*) url_kind=root ;;
  [Oo][Ss][Dd][Ff]://?* | [Pp][Ee][Ll][Ii][Cc][Aa][Nn]://?*) url_kind=pelican ;;
  [Ff][Ii][Ll][Ee]:///?* | /*) url_kind='file' ;;
  *) return 1 ;;
  esac
}

# The schemes that url_kind knows, for a message.
readonly URL_SCHEMES='http, https, dav, davs, root, roots, xroot, xroots, osdf, pelican, file:///, or an absolute path'

client_url="" # as the function of this name has set it

# Sets client_url to a URL as its client wants it: dav and davs are http and https to curl, xroot and xroots are root and roots
# to XRootD, and a file is its path. Argument: URL that url_kind knows
client_url() {
  local scheme="${1%%://*}" location="${1#*://}"
  if [[ "$1" == /* ]]; then
    client_url="$1"
    return 0
  fi
  scheme="${scheme,,}"
  case "$scheme" in
  http | dav) client_url="http://$location" ;;
  https | davs) client_url="https://$location" ;;
  root | xroot) client_url="root://$location" ;;
  roots | xroots) client_url="roots://$location" ;;
  file) client_url="/${location#/}" ;;
  *) client_url="$scheme://$location" ;;
  esac
}

readonly OSDF_HOST=osg-htc.org # tells where the director of the OSDF is

# Sets place to host and port of a URL in lower case; without a port it is that of the scheme. A Pelican URL's host is that of its
# federation. Argument: URL
host_and_port() {
  local scheme="${1%%://*}"
  scheme="${scheme,,}" place="${1#*://}"
  place="${place%%[/?#]*}"
  place="${place##*@}"
  place="${place,,}"
  [[ "$scheme" != osdf ]] || place="$OSDF_HOST"
  [[ ! "$place" =~ :[0-9]+$ ]] || return 0
  case "$scheme" in
  http | dav) place+=:80 ;;
  *root*) place+=:1094 ;;
  *) place+=:443 ;;
  esac
}

# --- bearer token ------------------------------------------------------------------------------------------------

# Finds a bearer token where all WLCG tools look, and where HTCondor puts one. Sets bearer, and exports
# BEARER_TOKEN_FILE for other clients when the token is in a file. Call it before each use: HTCondor renews the file.
find_token() {
  local uid file part found="${BEARER_TOKEN:-}"
  bearer=""
  found="${found//[[:space:]]/}"
  if [[ -n "$found" ]]; then
    bearer="$found"
    return 0
  fi
  uid="$EUID"
  if [[ -n "${BEARER_TOKEN_FILE:-}" ]]; then
    set -- "$BEARER_TOKEN_FILE" # a file that is named is the only one
  else                          # HTCondor's belongs to this job; the others may belong to all who run as this user
    set -- "${_CONDOR_CREDS:-/nonexistent}"/*.use "${XDG_RUNTIME_DIR:-/nonexistent}/bt_u$uid" "/tmp/bt_u$uid"
  fi
  for file in "$@"; do
    found=""
    if [[ -f "$file" && -r "$file" ]]; then
      while IFS= read -r -d '' part || [[ -n "$part" ]]; do # up to a NUL, or to the end
        found+="${part//[[:space:]]/}"
      done 2>/dev/null <"$file" || true
    fi
    if [[ -n "$found" ]]; then
      bearer="$found"
      export BEARER_TOKEN_FILE="$file"
      return 0
    fi
  done
}

trusted=" " # hosts to which this job sends its credentials: host:port, or host for all its ports, with a space around each

# Sets the hosts to which this job sends its credentials, a bearer token or a proxy certificate. The submitter or the operator
# named them in OSGPROD_URL, OSGPROD_OUTPUT_URL and OSGPROD_TOKEN_HOSTS, in osgprod_token_hosts, which the server fills in, and in
# the arguments. Other URLs are what jobs have reported. Arguments: URLs
trust_only() {
  local word lists="${OSGPROD_TOKEN_HOSTS:-} ${osgprod_token_hosts:-}"
  trusted=" "
  set -f
  # shellcheck disable=SC2086  # words separated by spaces or commas
  for word in "${OSGPROD_URL:-}" "${OSGPROD_OUTPUT_URL:-}" "$@" ${lists//,/ }; do
    trust "$word"
  done
  set +f
}
# Argument: URL, host, or host:port
trust() {
  local place="${1,,}"
  [[ "$1" != *://* ]] || host_and_port "$1"
  [[ -z "$place" || "$place" == :* || "$place" == *[/[:space:]]* ]] || trusted+="$place "
}

# May this job's credentials be shown to the host of a URL? Only to one that trust has named, and never in the clear.
# Argument: URL
may_have_credentials() {
  local place
  case "$1" in
  [Hh][Tt][Tt][Pp]://* | [Dd][Aa][Vv]://*) return 1 ;;
  esac
  host_and_port "$1"
  [[ "$place" != :* && ("$trusted" == *" $place "* || "$trusted" == *" ${place%:*} "*) ]]
}

# Prints why a host may have refused a request, if this job's credentials were kept from it; nothing otherwise. To a disk, over
# plain http, and for public data none are shown anyway. Argument: URL
withheld() {
  local place
  $shows_credentials || return 0
  case "${1,,}" in
  /* | file:* | http://* | dav://*) return 0 ;;
  esac
  ! may_have_credentials "$1" || return 0
  find_token
  [[ -n "$bearer${X509_USER_PROXY:-}" ]] || return 0
  host_and_port "$1"
  printf '; no credentials were shown to %s: OSGPROD_TOKEN_HOSTS does not name it' "$place"
}

# Runs a client that finds credentials by itself, as XRootD's do: for a host that may not see them, without any.
# Arguments: URL, command
client_for() {
  local url="$1"
  shift
  if may_have_credentials "$url"; then
    "$@"
    return
  fi
  (
    unset BEARER_TOKEN BEARER_TOKEN_FILE X509_USER_PROXY
    export XrdSecPROTOCOL=unix # the name of this user is all that it shows
    exec "$@"
  )
}

# --- HTTP --------------------------------------------------------------------------------------------------------

# -q: no .curlrc of the node's users; -g: no patterns in URLs; --noproxy: no web cache of the site in between.
readonly CURL=(curl -q -g -sS --noproxy '*' --connect-timeout 20)
http_version=""        # of storage; --http1.1 once a stream of HTTP/2 has failed
shows_credentials=true # to storage; false for a source that needs none
http_url=""            # of the last request to storage
head_text=""           # as find_head has found it
head_status=000        # the same
header=""              # as find_header has found it
headers=""             # the same, of all headers of the name
split_head=""          # the head that find_header has split last
declare -A values=()   # of its headers, by name in lower case; of several with one name, joined by line ends

# Prints one line of a curl configuration. Secrets reach curl on its standard input, never on its command line.
# Arguments: option, value
curl_option() {
  local value="$2"
  value="${value//\\/\\\\}"
  value="${value//\"/\\\"}"
  value="${value//$'\n'/\\n}"
  printf '%s = "%s"\n' "$1" "$value"
}

# Prints the curl configuration for certificates of authorities that only the grid knows, beside those that curl trusts
# anyway. Told of a folder, curl no longer looks at these two variables.
ca_options() {
  local folder="${X509_CERT_DIR:-/etc/grid-security/certificates}" bundle="${CURL_CA_BUNDLE:-${SSL_CERT_FILE:-}}"
  [[ -d "$folder" ]] || return 0
  curl_option capath "$folder"
  [[ -z "$bundle" ]] || curl_option cacert "$bundle"
}

# Prints the curl configuration with what storage may want to see, if it may see it: a proxy certificate, a token. Argument: URL
storage_options() {
  ca_options
  $shows_credentials && may_have_credentials "$1" || return 0
  if [[ -n "${X509_USER_PROXY:-}" ]]; then
    curl_option cert "$X509_USER_PROXY"
    curl_option key "$X509_USER_PROXY"
  fi
  find_token
  [[ -z "$bearer" ]] || curl_option header "Authorization: Bearer $bearer"
}

# Sends a request to storage and follows redirects: not curl, which in old versions sends a token along to any host.
# Prints the body of the last answer, and nothing of a redirect or of an error. Nothing is written to a disk.
# Sets what http_request sets, of the last answer, and returns what it returns.
# Arguments: URL (http, https, dav, davs), curl's options without secrets
http_transfer() {
  local url next place hop code
  client_url "$1"
  url="$client_url"
  shift
  for ((hop = 0; hop < 6; hop++)); do
    code=0
    http_request "$url" "$@" || code=$?
    ((code == 47)) || return "$code"
    find_header location "$http_head"
    next="$header"
    place="${url#*://}"
    [[ "$next" != /* || "$next" == //* ]] || next="${url%%://*}://${place%%[/?#]*}$next"
    case "$next" in
    [Hh][Tt][Tt][Pp][Ss]://?*) ;;
    [Hh][Tt][Tt][Pp]://?*) [[ "$url" == http://* ]] || return 47 ;; # never from https to plain http
    *) return 47 ;;
    esac
    url="$next"
  done
  return 47
}

# Sends one request to storage. Prints the body of the answer, and nothing of a redirect or of an error.
# Sets http_status (000 = no answer), http_head (the answer's head), http_error (curl's words) and http_url.
# Returns curl's exit code: 0, 22 = http_status is 400 or more, 47 = a redirect, ...
# Arguments: URL (http, https), curl's options without secrets
http_request() {
  local url="$1" reply="" code=0
  shift
  http_url="$url"
  # With -L and no redirect allowed, curl drops the body of a redirect and ends with 47. The URL is not on its command line, since
  # the query of a redirect may be a secret. It is the last line that curl reads: if its writer is killed, curl has no
  # URL and sends nothing. Newer versions of bash warn of a NUL that they leave out; the warning is discarded.
  {
    reply="$(
      exec "${CURL[@]}" ${http_version:+"$http_version"} -f -L --max-redirs 0 --speed-limit 1000 --speed-time 120 \
        -K - -D /dev/stderr "$@" 2>&1 >&3 < <(
          storage_options "$url"
          curl_option url "$url"
        )
    )" || code=$?
  } 3>&1 2>/dev/null
  find_head "$reply"$'\n' # a substitution takes the line ends away
  http_head="$head_text" http_status="$head_status"
  http_error=""
  if [[ $'\n'"$reply" == *$'\ncurl: '* ]]; then
    http_error=$'\n'"$reply"
    http_error="curl: ${http_error##*$'\n'curl: }"
    http_error="${http_error%%$'\n'*}"
  fi
  if ((code == 22)) && [[ "$http_status" == 000 && "$http_error" =~ error:\ ([45][0-9][0-9]) ]]; then
    http_status="${BASH_REMATCH[1]}" # curl 7.29 gives no head of an error
  fi
  return "$code"
}

# Prints what the last answer of storage says of its failure.
http_fault() {
  printf 'status %s %s' "$http_status" "$http_error"
  case "$http_status" in
  401 | 403 | 404) withheld "$http_url" ;;
  esac
}

# Remembers what a failed transfer tells about the next one: after an error of an HTTP/2 stream, HTTP/1.1 is used.
# Call it where the change lasts: not in a subshell. Argument: curl's exit code
learn_from() {
  case "$1" in
  16 | 92) http_version=--http1.1 ;;
  esac
}

# Finds the head of the answer in what curl's -D gave. Sets head_text to the head, empty when there is none, and head_status to
# its status, 000 when there is none. Interim answers (1xx) before it don't count, nor does a head that was cut: it lacks the
# empty line at its end. What stands before the first head was said by no server: the loader may warn of a library.
# Argument: curl's text, a body may follow the head
find_head() {
  local answer="$1" pattern='^HTTP/[0-9.]+ ([1-9][0-9][0-9])'
  [[ "$answer" == HTTP/* || "$answer" != *$'\nHTTP/'* ]] || answer="HTTP/${answer#*$'\nHTTP/'}"
  while [[ "$answer" == HTTP/*$'\r\n\r\n'* ]]; do
    head_text="${answer%%$'\r\n\r\n'*}"
    answer="${answer#*$'\r\n\r\n'}"
    if [[ ! "$head_text" =~ ^HTTP/[0-9.]+\ 1 ]]; then
      head_status=000
      [[ ! "$head_text" =~ $pattern ]] || head_status="${BASH_REMATCH[1]}"
      return 0
    fi
  done
  head_text="" head_status=000
}

# Sets headers to the values of all headers of a name, a line each, and header to the last one, which counts; empty when there is
# none. Arguments: name in any case, head
find_header() {
  [[ "$2" == "$split_head" ]] || split_headers "$2"
  headers="${values["${1,,}"]:-}"
  header="${headers##*$'\n'}"
}

# Sets values, without spaces around them. Argument: head
split_headers() {
  local text="$1"$'\n' line name value
  split_head="$1" values=()
  while [[ -n "$text" ]]; do
    line="${text%%$'\n'*}"
    text="${text#*$'\n'}"
    name="${line%%:*}"
    if [[ -n "$name" && "$name" != "$line" ]]; then
      name="${name,,}"
      value="${line#*:}"
      value="${value#"${value%%[![:space:]]*}"}"
      value="${value%"${value##*[![:space:]]}"}"
      values["$name"]="${values["$name"]+${values["$name"]}$'\n'}$value"
    fi
  done
}

# --- checksums ---------------------------------------------------------------------------------------------------

readonly SMALL_BYTES=16384 # a file up to here awk has summed up before the other programs have started

# Prints the checksum that storage systems know, as 8 hexadecimal digits, from the first program here that works.
# Arguments: file, its size [bytes; default: it is looked up]
adler32() {
  local how sum first="" size="${2:-}"
  if [[ -z "$size" ]]; then
    size_of "$1" 2>/dev/null || return 1
    size="$size_of"
  fi
  ((size > SMALL_BYTES)) || first=adler32_of_awk
  for how in $first adler32_of_xrootd adler32_of_python adler32_of_awk; do
    if sum="$("$how" "$1" 2>/dev/null)" && sum="${sum%% *}" && [[ "$sum" =~ ^[0-9a-f]{8}$ ]]; then
      printf '%s\n' "$sum"
      return 0
    fi
  done
  return 1
}

# From its standard input: of a file it would print what it has written to the file's attributes, which is wrong when the
# file has changed in the same second.
adler32_of_xrootd() {
  xrdadler32 <"$1"
}

adler32_of_python() {
  python3 -c 'import sys, zlib
a = 1
with open(sys.argv[1], "rb") as f:
    for block in iter(lambda: f.read(1 << 20), b""):
        a = zlib.adler32(block, a)
print("%08x" % (a & 0xffffffff))' "$1"
}

adler32_of_awk() {
  od -A n -v -t u1 "$1" | awk 'BEGIN { a = 1 } { for (i = 1; i <= NF; i++) { a += $i; b += a } a %= 65521; b %= 65521 }
    END { printf "%04x%04x\n", b, a }'
}

# --- processes ---------------------------------------------------------------------------------------------------

readonly EXIT_FAILED=10 EXIT_NODE_FAULT=20 EXIT_LATER=30 EXIT_REFUSED=40 EXIT_TERM=143
readonly EXIT_NO_FORK=254 # of bash
readonly KILL_AFTER_S=3   # from SIGTERM to SIGKILL of the work
readonly MAX_CAPTURED=65536

scratch=""       # this job's folder: the script, the work's folder, two pipes
pipe=""          # what a command prints on its way to capture
child_group=""   # process group of the command that is waited for
work_group=""    # process group of the work
heartbeat_pid="" # sends the heartbeats
leftover=""      # file that is not whole yet
is_stopped=false # has a signal asked this script to end?

# Waits, without a child that could outlive this script. Argument: seconds
pause() {
  read -r -t "$1" -u 9 || true
}

# Runs a command in a separate process group, so that this script can handle SIGTERM at once and end the whole group.
# Returns its exit code. Arguments: command
run() {
  local status=0
  set -m
  "$@" &
  child_group=$!
  set +m
  wait "$child_group" || status=$?
  child_group=""
  await_signal "$status"
  return "$status"
}

# Waits 1 s for a signal after a signal ended a child: HTCondor or the batch system may end a job's child before the job. The
# job then was stopped, and its child did not fail. Argument: exit code of the child
await_signal() {
  case "$1" in
  130 | 137 | 143) pause 1 ;;
  esac
}

# The same for a command whose output is needed. Sets captured to what it printed, without NULs, the first MAX_CAPTURED bytes; no disk
# is needed.
# To open a pipe waits for its other end: descriptor 7 is both ends, so that no child waits for ever for a parent that was killed.
# Somebody may have removed the pipe, with this job's folder: it is made again, so that the job can still report.
capture() {
  local status=0 text
  [[ -p "$pipe" ]] || { mkdir -p "$scratch" && rm -f "$pipe" && mkfifo -m 600 "$pipe"; } || return 1
  exec 7<>"$pipe"
  set -m
  "$@" >"$pipe" 7>&- &
  child_group=$!
  set +m
  exec 6<"$pipe" 7>&-
  captured="" text=""
  while ((${#captured} < MAX_CAPTURED)) && IFS= read -r -d '' -n "$((MAX_CAPTURED - ${#captured}))" -u 6 text; do
    captured+="$text" text=""
  done
  captured+="$text"
  exec 6<&-
  wait "$child_group" || status=$?
  child_group=""
  await_signal "$status"
  return "$status"
}

# Ends a process group: politely, then for good. Argument: its number
end_group() {
  local n
  kill -TERM -- "-$1" 2>/dev/null || return 0
  for ((n = 0; n < KILL_AFTER_S * 10; n++)); do
    kill -0 -- "-$1" 2>/dev/null || return 0
    pause 0.1
  done
  kill -KILL -- "-$1" 2>/dev/null || true
}

# Ends the processes that have a line in their environment. The work may have left some in process groups of their own: they would go on
# writing into its outputs. Those of other users are not seen. Argument: line
end_strays() {
  local n signal=TERM strays
  for ((n = 0; n <= KILL_AFTER_S * 10; n++)); do
    strays="$(grep -lszxF -e "$1" /proc/[0-9]*/environ)" || true # 2 = one of them has ended
    [[ -n "$strays" ]] || return 0
    ((n < KILL_AFTER_S * 10)) || signal=KILL
    strays="${strays//[!0-9$'\n']/}"
    # shellcheck disable=SC2086  # numbers
    kill "-$signal" $strays 2>/dev/null || true
    pause 0.1
  done
}

make_scratch() {
  local parent word
  printf -v word '%04x%04x%04x' "$RANDOM" "$RANDOM" "$RANDOM"
  for parent in "${_CONDOR_SCRATCH_DIR:-}" "${TMPDIR:-}" "$PWD" /tmp /var/tmp; do
    if [[ -z "$scratch" && -n "$parent" ]]; then
      [[ "$parent" == /* ]] || parent="$PWD/$parent" # the work runs in another folder
      scratch="$parent/osgprod.$word"                # before there is one: a signal may come in between
      mkdir -m 700 "$scratch" 2>/dev/null || scratch=""
    fi
  done
  [[ -n "$scratch" ]] || die "$EXIT_NODE_FAULT" 'no folder here can be written'
  export TMPDIR="$scratch" # bash's own here-documents need one that can be written
  pipe="$scratch/pipe"
  mkfifo "$scratch/clock" "$scratch/peaks" "$scratch/pipe" "$scratch/pipe.heartbeat"
  exec 9<>"$scratch/clock" # nothing is ever written there: a read from it is a wait
  exec 8<>"$scratch/peaks" # look leaves a line there for measure: a file would take room on the disk
}

# Can this node's disk take another 64 KiB? Outputs that were written to a full disk may be cut. Leaves an empty file.
disk_has_room() {
  local status=1
  for _ in 1 2; do # somebody may kill a program
    # A subshell, which a limit on the size of files may kill.
    ((status == 0)) || ! (printf '%65536s' '' >"$scratch/probe") 2>/dev/null || status=0
  done
  { : >"$scratch/probe"; } 2>/dev/null || true
  return "$status"
}

# Kills what this process waits for: also a child that it has just begun, when a signal came before child_group or work_group
# was set. The work and the heartbeats are not among them.
end_children() {
  local group
  for group in "$child_group" "${!:-}"; do
    [[ -z "$group" || "$group" == "$work_group" || "$group" == "$heartbeat_pid" ]] || kill -KILL -- "-$group" 2>/dev/null || true
  done
}

# The signals that ask a job to end: batch systems send others than SIGTERM too, as a warning or at a limit.
readonly SIGNALS=(TERM INT HUP QUIT USR1 USR2 ALRM XCPU)

# Has a command that does not return run at a signal. bash runs no trap while it leaves a loop by break or continue, and the signal would be
# lost: so this script has neither. The bracket in the second line is not reached. But where bash 5.2 is about to parse a
# $(...), it takes the text for the inside of that, and without a bracket it would end with a syntax error. Arguments: signal, command
hear() {
  # shellcheck disable=SC2064  # the command of now
  trap "$2"$'\n)' "$1"
}
hear_signals() {
  local signal
  for signal in "${SIGNALS[@]}"; do
    hear "$signal" "on_signal $signal"
  done
}

# Ends this script. Argument: the signal's name
on_signal() {
  [[ "$BASHPID" == "$$" ]] || exit "$EXIT_TERM"
  set +e # a program that somebody kills must not end this before all is done
  is_stopped=true
  trap '' "${SIGNALS[@]}"
  pause() { sleep "$1"; } # after SIGALRM no "read" of bash 4.2 ends by its timeout any more
  log "SIG$1: the slice stays leased to this job until its lease expires"
  end_children
  if [[ -n "$work_group" ]]; then
    end_group "$work_group"
    print_log "$scratch/work.log" 100000 || true
  fi
  tidy_up
  # bash 5.2 now and then crashes in "exit" here, when the signal came while it parsed a $(...).
  shopt -s execfail
  trap - EXIT
  exec "$BASH" -pc "exit $EXIT_TERM" 2>/dev/null || exit "$EXIT_TERM"
}

cleanup() {
  local status=$?
  # A child that is ended before it has begun still has these traps: it must not remove our folder.
  [[ "$BASHPID" == "$$" ]] || exit "$status"
  set +e
  trap '' "${SIGNALS[@]}"              # one that comes now would leave our folder, or crash bash
  ! $is_stopped || status="$EXIT_TERM" # bash may have another code, from the command that the signal interrupted
  stop_heartbeats
  [[ -z "$work_group" ]] || end_group "$work_group"
  # bash could start no process, so it can't remove anything either: it would end here with 254.
  ((status != EXIT_NO_FORK)) || exit "$EXIT_NODE_FAULT"
  tidy_up
  case "$status" in
  0 | "$EXIT_FAILED" | "$EXIT_NODE_FAULT" | "$EXIT_LATER" | "$EXIT_REFUSED" | "$EXIT_TERM") exit "$status" ;;
  esac
  ((status != ${CHECKPOINT_CODE:-0})) || exit "$status"
  log "a command of this script failed with $status" # because of what this node has, or has not
  exit "$EXIT_NODE_FAULT"
}

tidy_up() {
  stop_heartbeats
  [[ -z "$leftover" ]] || rm -f "$leftover"
  [[ -z "$scratch" ]] || remove_tree "$scratch"
}

# --- the server --------------------------------------------------------------------------------------------------

readonly EXEC_VERSION=0.16.0

http_status=000   # of the last answer; 000 = no valid answer
is_cut_here=false # could the work script that came not be written to this node's disk?
answer=""         # its Osgprod-Status
head=""           # its head
body=""           # what it says, in one line, or why none came

# The valid answers, by route, HTTP status and Osgprod-Status. Anything else does not come from the server: a portal's
# login page, the 404 of a front server, a head that was cut. Arguments: route, status, Osgprod-Status
is_answer() {
  case "$1 $2 $3" in
  'workscript.bash 200 assigned' | 'workscript.bash 200 completed' | 'workscript.bash 200 wait') ;;
  'workscript.bash 200 no-work' | 'workscript.bash 200 no-time') ;;
  'workscript.ping 200 alive' | 'workscript.ping 403 refused') ;;
  'workscript.ping 409 superseded' | 'workscript.ping 409 wedged') ;;
  'workscript.exit 200 done' | 'workscript.exit 200 failed' | 'workscript.exit 200 node-fault') ;;
  'workscript.exit 403 refused' | 'workscript.exit 409 superseded' | 'workscript.exit 409 contradicted') ;;
  'workscript.'*' '[45][0-9][0-9]' error') ;;
  *) return 1 ;;
  esac
}

# Does HTTP say where the body ends? Only then does curl notice a body that was cut. Argument: head
tells_its_end() {
  [[ ! "$1" =~ ^HTTP/[2-9] ]] || return 0
  find_header Transfer-Encoding "$1"
  [[ "${header,,}" != *chunked ]] || return 0
  find_header Content-Length "$1"
  [[ "$header" =~ ^[0-9]+$ ]]
}

# Is the body not what the server has sent? A proxy may compress it, though nobody has asked for that. Sets header to how.
# Argument: head
is_encoded() {
  find_header Content-Encoding "$1"
  [[ -n "$header" && "${header,,}" != identity ]]
}

# Reads the answer to a request. Sets http_status, answer, head and body.
# Arguments: route, curl's exit code, what curl printed: the heads, then the body, then its own words
read_answer() {
  local route="$1" code="$2" reply="$3" status found
  http_status=000 answer=""
  find_head "$reply"
  head="$head_text" status="$head_status"
  find_header Osgprod-Status "$head"
  found="$header"
  find_header Osgprod-Request "$head"
  if ((code != 0)); then
    body="${reply##*curl: }"
    [[ "$reply" == *'curl: '* ]] || body="exit code $code of curl"
  elif [[ -z "$header" ]] || ! is_answer "$route" "$status" "$found"; then
    body="status $status, but no whole answer of osgprod: is OSGPROD_URL right?"
  elif [[ "$route" == workscript.bash ]] && is_encoded "$head"; then
    body="status $status, but a proxy on the way has encoded it: $header"
  elif ! tells_its_end "$head"; then
    body="status $status, but its body may be cut"
  else
    http_status="$status" answer="$found"
    body="${reply#*"$head"$'\r\n\r\n'}"
  fi
  in_one_line "$body"
}

# Sets body to the first line of a text; for an error of the server, to its message and its hint. Argument: text
in_one_line() {
  local next="${1#*$'\n'}"
  body="${1%%$'\n'*}"
  [[ "$body" == '# osgprod error'* ]] || return 0
  body="${body#\# }"
  [[ "$next" != '# hint: '* ]] || body+="; ${next:2}"
  body="${body%%$'\n'*}"
}

# Becomes curl, which sends one request, as a POST, of which no proxy on the way keeps a copy. The URL is the last line that curl
# reads: if its writer is killed, curl has no URL and sends nothing.
# Arguments: route, file for the body or nothing, then name value pairs
send_request() {
  local route="$1" file="$2"
  shift 2
  exec "${CURL[@]}" ${http_version:+"$http_version"} --max-time 120 -H 'Expect:' -K - -D - 2>&1 \
    < <(
      ca_options
      # Storage believes the token too: it goes to nobody in the clear.
      [[ -n "$magic" || -z "$bearer" || ! "$OSGPROD_URL" =~ ^(https://|http://(127\.0\.0\.1|localhost|\[::1\])[:/]) ]] ||
        curl_option header "Authorization: Bearer $bearer"
      while (($# > 1)); do
        [[ -z "$2" ]] || curl_option data-urlencode "$1=$2"
        shift 2
      done
      [[ -z "$file" ]] || curl_option output "$file"
      curl_option url "${OSGPROD_URL%/}/$route"
    )
}

# Asks the server once. Sets http_status, answer, head and body; the body of workscript.bash goes to a file, and nothing
# else does: the disk may be full. Arguments: route, then name value pairs
request() {
  local route="$1" file="" code=0
  shift
  is_cut_here=false
  if [[ "$route" == workscript.bash ]]; then
    file="$scratch/work/.osgprod/script"
    [[ -d "${file%/*}" ]] || mkdir -p "${file%/*}"
  fi
  [[ -n "$magic" ]] || find_token # HTCondor renews it: the token of the start may have expired
  capture send_request "$route" "$file" project "$OSGPROD_PROJECT" cluster "$cluster" process "$process" \
    magic "$magic" job_key "$job_key" host "$host" site "$site" token "$token" "$@" || code=$?
  learn_from "$code"
  [[ -z "$file" ]] || ((code != 23)) || is_cut_here=true
  read_answer "$route" "$code" "$captured"
  [[ -z "$file" || "$http_status" == 000 || "$answer" == assigned ]] || in_one_line "$(said "$file")"
}

# Asks until there is an answer that counts and isn't "later". Returns 1 when there is none after TRIES attempts, or when this
# node's disk can't take the answer: each request for a work script is a start of the job. Arguments: as of request
persistent_request() {
  local try pause_s again
  for ((try = 1; ; try++)); do
    request "$@"
    case "$http_status" in
    000 | 5?? | 429) ;;
    *) return 0 ;;
    esac
    ! $is_cut_here || return 1
    find_header Retry-After "$head"
    pause_s="$(backoff "$try" "$BACKOFF_MS" "$header")"
    again=""
    ((try >= TRIES)) || again=", asks again in ${pause_s%.*} s"
    log "$1 failed (attempt $try of $TRIES, status $http_status$again): $body"
    ((try < TRIES)) || return 1
    pause "$pause_s"
  done
}

# Asks for a work script until there is one or nothing to wait for. Sets answer: assigned, or why there is none. Returns
# this script's exit code when the server can't be asked, refuses, or has leased all work. Argument: cores
checkout() {
  local left_s="$MAX_WAIT_S" retry_s image full='the disk of this node is full'
  if ! disk_has_room; then
    log "$full"
    return "$EXIT_NODE_FAULT"
  fi
  # What surrounds this script, else what will surround the work.
  plain_text 200 "${APPTAINER_CONTAINER:-${SINGULARITY_CONTAINER:-${OSGPROD_CONTAINER:-}}}"
  image="$plain_text"
  while true; do
    time_left
    if ! persistent_request workscript.bash cpus "$1" schedd "$schedd" qdate "$qdate" time_left_s "$time_left" \
      after "$after" exec_version "$EXEC_VERSION" image "$image"; then
      if $is_cut_here; then
        log "$full: the work script can't be written: $body"
        find_header Osgprod-Token "$head"
        token="$header"
        [[ -z "$token" ]] || report "$EXIT_NOT_FETCHED" fault node reason "$full" || true
        return "$EXIT_NODE_FAULT"
      fi
      log "the server gives no work script: $body"
      return "$EXIT_LATER"
    elif [[ "$http_status" != 200 ]]; then
      log "refused with status $http_status: $body"
      return "$EXIT_REFUSED"
    fi
    [[ "$answer" == wait ]] || return 0
    find_header Retry-After "$head"
    retry_s="$header"
    [[ "$retry_s" =~ ^[0-9]{1,5}$ ]] || retry_s=60
    retry_s="$((10#$retry_s > 0 ? 10#$retry_s : 1))" # with 0 the job would ask without a pause
    if ((retry_s > left_s)); then
      ((MAX_WAIT_S > 0)) || return 0
      log "no work can be assigned yet; the next try would come after OSGPROD_MAX_WAIT_S=$MAX_WAIT_S s, so this job ends"
      return "$EXIT_LATER"
    fi
    log "no work can be assigned yet, asks again in $retry_s s: $body"
    pause "$retry_s.$((RANDOM % 10))"
    left_s=$((left_s - retry_s))
  done
}

# Prints what the server says in a script that has nothing to do, or in an error. The script is read, not run.
# Argument: file
said() {
  sed -n -e "/^printf '%s\\\\n' /{s///p;q;}" -e '/^# osgprod error/{$!N;p;q;}' "$1" 2>/dev/null
}

# Reports how the attempt ended, and what it used. Arguments: exit code, then name value pairs. Returns 1 when no answer came.
report() {
  local code="$1"
  shift
  stop_heartbeats
  plain_text 120 "${reported[door]:-}"
  if ! persistent_request workscript.exit exitcode "$code" door "$plain_text" \
    ${resources[@]+"${resources[@]}"} "$@"; then
    log "no report was accepted by the server (attempts: $TRIES): $body"
    return 1
  fi
  log "reported exit code $code: status $http_status $answer: $body"
}

# --- the work ----------------------------------------------------------------------------------------------------

readonly SUPERSEDED=8 WEDGED=9 # exit codes of send_heartbeats: another attempt has the work; there was no progress

work_status=0          # exit code of the work
heartbeat_status=0     # exit code of send_heartbeats
resources=()           # what the work has used: name value pairs for the report
ticks=0                # see children_ticks
declare -A reported=() # what the work's report says: the last value of each name
reported_inputs=""     # the values of its lines merged_input=, each with a line end

# Copies the proxy and the token into the work's folder, the only one that a container shows. HTCondor renews them: it is
# done again with each heartbeat. Argument: folder
copy_credentials() {
  find_token
  copy_secret "${X509_USER_PROXY:-}" "$1/proxy"
  copy_secret "${BEARER_TOKEN_FILE:-}" "$1/token"
}
# Arguments: file or nothing, its copy
copy_secret() {
  [[ ! -f "$1" ]] || (umask 077 && cp "$1" "$2.new" && mv -f "$2.new" "$2") 2>/dev/null || log "$1 can't be copied"
}

# Becomes the work script, in the current folder, in a container if there is one.
# Arguments: folder with the script, the report, and in a container the credentials
become_work() {
  local own="$1" words word
  local -a container=()
  unset OSGPROD_MAGIC OSGPROD_MAGIC_FILE OSGPROD_JOB_KEY
  export OSGPROD_REPORT="$own/report.txt"
  if [[ -n "${OSGPROD_CONTAINER:-}" ]]; then
    set -f
    # shellcheck disable=SC2086  # words separated by spaces
    for words in ${OSGPROD_CONTAINER}; do
      word=""
      while [[ "$words" == *'{}'* ]]; do
        word+="${words%%'{}'*}$PWD"
        words="${words#*'{}'}"
      done
      container+=("$word$words")
    done
    set +f
    export APPTAINER_BIND="${APPTAINER_BIND:+$APPTAINER_BIND,}$PWD" TMPDIR="$own"
    export SINGULARITY_BIND="${SINGULARITY_BIND:+$SINGULARITY_BIND,}$PWD"
    [[ -z "${X509_USER_PROXY:-}" ]] || export X509_USER_PROXY="$own/proxy"
    [[ -z "${BEARER_TOKEN_FILE:-}" ]] || export BEARER_TOKEN_FILE="$own/token"
  fi
  exec ${container[@]+"${container[@]}"} bash "$own/script"
}

# Runs the script in a separate process group and folder. Sets work_status, heartbeat_status and resources.
# Argument: seconds between heartbeats, 0 = none
run_work() {
  local own="$scratch/work/.osgprod" began_s="$SECONDS" began_ticks
  children_ticks
  began_ticks="$ticks"
  [[ -z "${OSGPROD_CONTAINER:-}" ]] || copy_credentials "$own"
  set -m
  (
    cd "$scratch/work" || exit # somebody has removed it: attempt looks for it
    become_work "$own"
  ) 8>&- 9>&- >"$scratch/work.log" 2>&1 &
  work_group=$!
  set +m
  start_heartbeats "$1" "$own"
  wait "$work_group" || work_status=$?
  await_signal "$work_status"
  end_group "$work_group" # the processes that it left in the background
  end_strays "OSGPROD_REPORT=$own/report.txt"
  open_folders
  # The heartbeats go on until the report: delivery may take longer than the lease.
  { : >"$scratch/delivering"; } 2>/dev/null || stop_heartbeats
  work_group=""
  revive_heartbeats "$1"
  children_ticks
  read_report "$own/report.txt"
  measure "$((SECONDS - began_s))" "$((ticks - began_ticks))"
  run print_log "$scratch/work.log" "$((MAX_LOG_BYTES / SLICES))" || true
}

# The work may have left this job's own folders such that this job can't use them.
open_folders() {
  local path
  for path in "$scratch" "$scratch/work" "$scratch/work/.osgprod"; do
    [[ -r "$path" && -w "$path" && -x "$path" ]] || chmod u+rwx "$path" 2>/dev/null || true
  done
}

# Prints a file, of a long one the head and the tail. Arguments: file, greatest number of bytes
print_log() {
  local half=$(($2 / 2))
  size_of "$1"
  if ((size_of <= $2)); then
    cat "$1"
    return
  fi
  head -c "$half" "$1"
  printf '\n--- osgprod_exec: %d bytes of the work'\''s output are left out here ---\n' "$((size_of - 2 * half))"
  tail -c "$half" "$1"
}

cpu_seconds=0 memory_bytes=0 folder_bytes=0 # as the functions of these names have set them

# Sets cpu_seconds to the CPU time that the processes of a group have used so far [s], from /proc. Argument: process group
cpu_seconds() {
  local file line total=0
  local -a fields
  for file in /proc/[0-9]*/stat; do
    line=""
    { IFS= read -r line <"$file"; } 2>/dev/null || true # it has ended
    # shellcheck disable=SC2206  # numbers
    fields=(${line##*) })
    # after the name: 0 state, 1 parent, 2 group; 11-14 ticks, own and of ended children
    [[ "${fields[2]:-}" != "$1" ]] || total=$((total + fields[11] + fields[12] + fields[13] + fields[14]))
  done
  cpu_seconds="$((total / 100))"
}

# Sets ticks to the CPU time that this script's ended children have used, with theirs [ticks].
children_ticks() {
  local line
  local -a fields
  IFS= read -r line <"/proc/$$/stat"
  # shellcheck disable=SC2206  # numbers
  fields=(${line##*) })
  ticks="$((fields[13] + fields[14]))"
}

# Sets memory_bytes to the memory of a process group, with what its processes have started: resident now, or the peak of
# its largest process, if that is more. Not the peak of the cgroup: it holds the files that were read, and a pilot's other
# jobs. Argument: process group
memory_bytes() {
  local file line pid up depth resident=0 largest=0 key value
  local -a fields parents=()
  for file in /proc/[0-9]*/stat; do
    line=""
    { IFS= read -r line <"$file"; } 2>/dev/null || true # it has ended
    # shellcheck disable=SC2206  # numbers
    fields=(${line##*) })
    pid="${file//[!0-9]/}"
    # after the name: 1 parent, 2 group
    parents[pid]="${fields[1]:-0}"
    [[ "${fields[2]:-}" != "$1" || "$pid" == "$1" ]] || parents[pid]="$1"
  done
  for pid in "${!parents[@]}"; do
    up="$pid"
    for ((depth = 0; depth < 100 && up > 1 && up != $1; depth++)); do
      up="${parents[up]:-0}"
    done
    ((up != $1)) || while read -r key value _; do
      case "$key" in
      VmHWM:) ((value <= largest)) || largest="$value" ;;
      VmRSS:) resident=$((resident + value)) ;;
      esac
    done 2>/dev/null <"/proc/$pid/status" || true
  done
  memory_bytes="$((1024 * (resident > largest ? resident : largest)))"
}

# Sets resources from the looks while the work ran, and from the files that it left. Arguments: seconds that it took, ticks
measure() {
  local memory=0 disk=0 fetched
  read -r -t 0.1 -u 8 memory disk || true
  [[ "$memory" =~ ^[0-9]{1,18}$ && "$disk" =~ ^[0-9]{1,18}$ ]] || memory=0 disk=0
  folder_bytes "$scratch/work"
  ((folder_bytes <= disk)) || disk="$folder_bytes"
  fetched="${reported[fetched_bytes]:-}"
  [[ "$fetched" =~ ^[0-9]{1,18}$ ]] || fetched=""
  ((memory > 0)) || memory="" # it was too short to be looked at
  resources=(memory_bytes "$memory" disk_bytes "$disk" fetched_bytes "$fetched" cpu_s "$(($2 / 100))")
  (($1 < 0)) || resources+=(wall_s "$1") # the clock was set back
}

# Sets folder_bytes to the size of a folder, without the file systems that are mounted in it. Argument: folder
folder_bytes() {
  capture disk_usage "$1" || true
  folder_bytes=0
  [[ ! "$captured" =~ ^[0-9]{1,15} ]] || folder_bytes="$((BASH_REMATCH[0] * 1024))"
}
disk_usage() {
  cd "$1" && exec du -xsk . 2>/dev/null
}

# Arguments: seconds between heartbeats, 0 = none, folder for credentials or nothing, seconds before the first [the same]
start_heartbeats() {
  (($1 > 0)) || return 0
  [[ -z "$2" ]] || { : >"$2/sends-heartbeats"; } 2>/dev/null || true
  send_heartbeats "$1" "$2" "${3:-$1}" &
  heartbeat_pid=$!
}

# Renews the lease until the server reports the attempt as superseded or wedged, or until this script was killed; then it
# ends the work, if it has not ended, and after a kill it removes this job's folder. The work may ask whether it still has
# the lease: it makes the file confirm-lease, and the next heartbeat is sent at once; when the file is gone, there is a file
# no-lease if the server did not confirm it.
# Arguments: seconds between heartbeats, folder for credentials, seconds before the first
send_heartbeats() {
  local interval_s="$1" own="$2" left_s="$3" memory=0 disk=0 n=0
  pipe="$scratch/pipe.heartbeat"
  hear TERM 'end_children; exit 0'
  while kill -0 "$$" 2>/dev/null; do
    if ((left_s > 0)) && [[ ! -e "$own/confirm-lease" ]]; then
      ((n++ % 5 != 1)) || look # first after a second: work that has just begun has not allocated its memory
      pause 1
      left_s=$((left_s - 1))
    else
      left_s="$interval_s"
      send_heartbeat
      [[ ! -e "$own/confirm-lease" ]] || pause 1 # it has been made again, or can't be removed
    fi
  done
  end_work
  remove_tree "$scratch"
}

# Sends one heartbeat, with what the work uses. Where the server wants the work to stop, it ends the work and this process. Its
# variables are those of send_heartbeats.
send_heartbeat() {
  [[ -z "${OSGPROD_CONTAINER:-}" || -e "$scratch/delivering" ]] || copy_credentials "$own"
  folder_bytes "$scratch/work"
  ((folder_bytes <= disk)) || disk="$folder_bytes"
  look
  cpu_seconds "$work_group"
  request workscript.ping bytes "$folder_bytes" cpu "$cpu_seconds"
  if [[ "$answer" == alive ]]; then
    rm -f "$scratch/work/.osgprod/no-lease"
  else # until then a merge script replaces nothing
    touch "$scratch/work/.osgprod/no-lease" 2>/dev/null || true
  fi
  [[ "$http_status" != 4?? || "$http_status" == 409 && "$answer" != error ]] || log "heartbeat refused with status $http_status: $body"
  if [[ "$http_status" == 409 && "$answer" != error ]]; then
    log "stopping the work: $body"
    trap '' TERM # the end of the work must not hide why
    end_work
    [[ "$answer" == wedged ]] || exit "$SUPERSEDED"
    exit "$WEDGED"
  fi
  rm -f "$scratch/work/.osgprod/confirm-lease"
}

# Looks how much memory the work uses, and leaves the most that was seen, with the caller's disk, for measure.
look() {
  [[ -n "$work_group" && ! -e "$scratch/delivering" ]] || return 0
  memory_bytes "$work_group"
  ((memory_bytes <= memory)) || memory="$memory_bytes"
  while read -r -t 0.01 -u 8 _; do :; done
  printf '%s %s\n' "$memory" "$disk" >&8
}

end_work() {
  [[ -e "$scratch/delivering" ]] || end_group "$work_group"
}

# Starts the heartbeats again when somebody has killed their process, as the system does when memory is short: the report may be far.
# Argument: seconds between heartbeats
revive_heartbeats() {
  [[ -n "$heartbeat_pid" ]] && ! kill -0 "$heartbeat_pid" 2>/dev/null || return 0
  wait "$heartbeat_pid" 2>/dev/null || heartbeat_status=$?
  heartbeat_pid=""
  ((heartbeat_status > 128)) || return 0
  heartbeat_status=0
  log 'somebody has killed the process that sends heartbeats: the lease may have expired while the work ran'
  start_heartbeats "$1" "" 0
}

stop_heartbeats() {
  if [[ -n "$heartbeat_pid" ]]; then
    # Again until it has ended: bash forgets a signal that comes before a child has its own traps.
    while kill -TERM "$heartbeat_pid" 2>/dev/null; do pause 0.02; done
    wait "$heartbeat_pid" 2>/dev/null || heartbeat_status=$?
    heartbeat_pid=""
  fi
}

# Sets plain_text to the last line of the work's output that isn't empty, as the reason of a failure, without the time and the name
# of the work script in front.
last_words() {
  log_end
  reason_text "$(printf '%s\n' "$log_end" | sed -e '/^[[:space:]]*$/d' -e 's/^[0-9TZ:-]* osgprod_[a-z]*: //' | tail -n 1)"
}

log_end="" # as the function of this name has set it

# Sets log_end to the end of the work's log, at most 10000 bytes, without the secrets of this job: also without the end of one
# that begins before these bytes.
log_end() {
  without_secrets "$(tail -c 20000 "$scratch/work.log" 2>/dev/null | tr -d '\000\r')"
  log_end="$without_secrets"
  ((${#log_end} <= 10000)) || log_end="${log_end: -10000}"
}

without_secrets="" # as the function of this name has set it

# Sets without_secrets to a text without the secrets of this job. Argument: text
without_secrets() {
  local secret
  without_secrets="$1"
  for secret in "$magic" "$bearer" "$job_key" "$token"; do
    ((${#secret} < 6)) || without_secrets="${without_secrets//"$secret"/(secret)}"
  done
}

# Sets plain_text to the first characters of what the work or storage has said, for the report: cut only after its secrets are gone.
# Arguments: as of plain_text
public_text() {
  without_secrets "$2"
  plain_text "$1" "$without_secrets"
}

# Sets plain_text to a reason for the report: at most 1000 characters with both ends, since the cause stands at the end. Argument: text
reason_text() {
  local text
  without_secrets "$1"
  text="$without_secrets"
  ((${#text} <= 1000)) || text="${text:0:400} ... ${text: -590}"
  plain_text 1000 "$text"
}

# Reads what the work has left in its report, lines NAME=VALUE; it may have left none. Sets reported and reported_inputs.
# Argument: file
read_report() {
  local line name
  reported=() reported_inputs=""
  [[ -f "$1" && -r "$1" ]] || return 0
  while IFS= read -r line || [[ -n "$line" ]]; do # without its NULs
    name="${line%%=*}"
    case "$name" in
    "$line") ;; # without a value
    merged_input) reported_inputs+="${line#*=}"$'\n' ;;
    bad_inputs | door | events | fault | fetched_bytes | misconfigured | outputs_list | software)
      reported["$name"]="${line#*=}"
      ;;
    esac
  done <"$1"
}

# Prints the end of the work's log for the report of a failure, at most 4000 bytes, without the secrets of this job.
log_tail() {
  log_end
  ((${#log_end} <= 4000)) || log_end="${log_end: -4000}"
  printf '%s' "$log_end"
}

# --- outputs -----------------------------------------------------------------------------------------------------

slice_file="" # as the function of this name has set it

# Sets slice_file to the name under which the work script fetches a slice: name+1,4.evio for name.evio+1,4. Argument: slice
slice_file() {
  local blocks="${1##*+}" name="${1%+*}"
  slice_file=""
  [[ "$name" != *.* ]] || slice_file="${name%.*}+$blocks.${name##*.}"
}

# Prints the files, symbolic links and folders below the current folder, each ended by a NUL: all but the work script's own folder, the
# files that are this job's credentials, under any name, and the files of a file system that the work has mounted. A socket, a named
# pipe or a device is no output. Names begin with ./; the word "whole" at the end says that find was neither killed nor kept out of a
# folder.
list_outputs() {
  local file
  local -a credentials=()
  for file in "${X509_USER_PROXY:-}" "${BEARER_TOKEN_FILE:-}" "${OSGPROD_MAGIC_FILE:-}"; do
    [[ ! -f "$file" ]] || credentials+=(! -samefile "$file")
  done
  find . -xdev -path ./.osgprod -prune -o \( -type f -o -type l -o -type d \) ${credentials[@]+"${credentials[@]}"} -print0 && printf 'whole\0'
}

# Is a file a core dump? Argument: file
is_core() {
  local magic=""
  case "${1##*/}" in
  core | core.* | vgcore.*) ;;
  *) return 1 ;;
  esac
  [[ -f "$1" && ! -L "$1" ]] || return 1
  { IFS= read -r -n 4 magic <"$1"; } 2>/dev/null || true
  [[ "$magic" == $'\x7fELF' ]]
}

# The outputs are not such that they can be packed, and that is the work's doing, not the node's. Argument: why
unfit() {
  printf '%s\n' "${1//[[:cntrl:]]/?}" >&2
  return "$EXIT_UNFIT"
}

# May this job read a file that the work has left, or a folder and what is in it? What is mounted there is no output. Argument: path
is_readable() {
  if [[ -d "$1" ]]; then
    [[ -r "$1" && -x "$1" ]] || is_mount_point "$PWD/$1"
  else
    [[ -r "$1" || ! -e "$1" ]]
  fi
}

# Packs what the work left into a tarball. Prints the number of its files, without the log. Returns EXIT_UNFIT when the outputs can't be
# packed as they are, and 137 when not all files could be listed.
# Arguments: folder of the work, its log, slice, tarball, log-only = without the outputs
pack_outputs() {
  local file is_whole=false unreadable=""
  local -a files=() codes=(0 0 0)
  slice_file "$3"
  [[ -d "$1" ]] || {
    printf 'somebody has removed the folder of the work: %s\n' "$1" >&2
    return 1
  }
  cd "$1" 2>/dev/null || unfit "the work has left its folder such that this job may not enter it: $1" || return
  while [[ "${5:-}" != log-only ]] && IFS= read -r -d '' file; do
    if [[ "$file" == whole ]]; then
      is_whole=true
    elif [[ "$file" == "./$slice_file" || "$file" == ./osgprod_work.log ]]; then
      rm -f "$file"
    elif [[ ! -L "$file" ]] && ! is_readable "$file"; then
      : "${unreadable:=${file#./}}" # named when find has ended: its own error message may come later than this
    elif [[ -d "$file" && ! -L "$file" ]]; then
      :
    elif is_core "$file"; then
      size_of "$file"
      log "left out: core dump ${file#./}, $size_of bytes"
      rm -f "$file"
    else
      files[${#files[@]}]="$file"
    fi
  done < <(list_outputs)
  [[ -z "$unreadable" ]] || unfit "the work has left a file or folder that this job may not read: $unreadable" || return
  $is_whole || [[ "${5:-}" == log-only ]] || return 137
  printf '%d\n' "${#files[@]}"
  [[ ! -e osgprod_work.log ]] || rm -f osgprod_work.log # a named pipe, for example, which would wait for a reader
  ! tail -c 100000 "$2" >osgprod_work.log 2>/dev/null || files[${#files[@]}]=./osgprod_work.log
  printf '%s\0' ${files[@]+"${files[@]}"} | tar -cf - --no-recursion --null -T - | gzip -c >"$4" || codes=("${PIPESTATUS[@]}")
  ((codes[2] == 0)) || return "${codes[2]}"
  ((codes[1] != 1)) || return "$EXIT_UNFIT" # a file has changed: tar has named it
  ((codes[1] != 2)) || for file in ${files[@]+"${files[@]}"}; do
    [[ -e "$file" || -L "$file" ]] || unfit "a file vanished while it was packed: ${file#./}" || return
  done
  ((codes[1] == 0)) || return "${codes[1]}"
  return "${codes[0]}"
}

# --- storage -----------------------------------------------------------------------------------------------------

readonly LOOKS=4 # how often storage is asked for a file that it has just taken, before it is believed to have none

storage_error="" # what the last command for storage said

# Each kind of storage (url_kind) has four functions: send_KIND FILE URL; stored_KIND URL prints the size of the stored
# file and, if the storage reports it, its adler32, a line each; move_KIND URL URL renames; remove_KIND URL. When one fails,
# it prints the error message on the standard error output, if there is one: for a missing file some have none.
send_http() {
  call_http "$2" -T "$1"
}
stored_http() {
  local code=0
  http_transfer "$1" -I --max-time 120 -H 'Want-Digest: adler32' >/dev/null || code=$?
  if ((code != 0)); then
    [[ "$http_status" == 404 && -z "$(withheld "$http_url")" ]] || http_fault >&2
    return "$code"
  fi
  find_header Content-Length "$http_head"
  printf '%s\n' "$header"
  digest_of "$http_head"
}
move_http() {
  client_url "$2"
  call_http "$1" --max-time 120 -X MOVE -H "Destination: $client_url" -H 'Overwrite: F'
}
remove_http() {
  call_http "$1" --max-time 120 -X DELETE
}
# Arguments: as of http_transfer
call_http() {
  local code=0
  http_transfer "$@" >/dev/null || code=$?
  ((code == 0)) || http_fault >&2
  return "$code"
}
# Prints the adler32 in a head of HTTP (RFC 3230: the names of algorithms have no case), if it is there. In another form than
# hexadecimal digits it is not known: base64 would be taken for another number, and a good file for a changed one. Argument: head
digest_of() {
  local pattern='^(.*[, ])?adler32="?([0-9a-f]{1,8})"?([,; ].*)?$'
  find_header Digest "$1"
  headers="${headers//$'\n'/,}"
  [[ ! "${headers,,}" =~ $pattern ]] || printf '%s\n' "${BASH_REMATCH[2]}"
}

send_root() {
  client_url "$2"
  client_for "$2" xrdcp --nopbar --force --posc "$1" "$client_url" # posc: nothing stays when the connection is lost
}
stored_root() {
  run_xrdfs "$1" stat | sed -n 's/^Size: *//p' || return
  run_xrdfs "$1" query checksum 2>/dev/null | sed -n 's/^adler32 *//p'
}
move_root() {
  client_url "$2"
  run_xrdfs "$1" mv "$(path_of "$client_url")"
}
remove_root() {
  run_xrdfs "$1" rm
}
# Arguments: URL, xrdfs command, what follows the path
run_xrdfs() {
  local url command="$2" location
  client_url "$1"
  url="$client_url"
  location="${url#*://}"
  shift 2
  if [[ "$command" == query ]]; then
    command="query $1"
    shift
  fi
  # shellcheck disable=SC2086  # one or two words
  client_for "$url" xrdfs "${url%%//*}//${location%%/*}" $command "$(path_of "$url")" "$@"
}
# Prints the path in a root URL, whose own slash is doubled. Argument: URL
path_of() {
  local path="${1#*://*/}"
  printf '/%s' "${path#/}"
}

send_pelican() {
  pelican object put "$1" "$2"
}
stored_pelican() {
  may_use_pelican "$1" || return
  pelican object stat "$1" | sed -n 's/^ *[Ss]ize: *\([0-9]*\).*/\1/p'
}
# The client finds credentials by itself. Argument: URL
may_use_pelican() {
  may_have_credentials "$1" || {
    printf 'the pelican client is not used%s\n' "$(withheld "$1")" >&2
    return 1
  }
}
move_pelican() {
  false # the client has no way
}
remove_pelican() {
  false
}

send_file() {
  local path top
  client_url "$2"
  path="$client_url"
  # Of a file system that is not mounted here, nothing is made on this node's own disk.
  top="$(dirname "$path" | cut -d / -f 1-3)"
  [[ -d "$top" ]] || {
    printf 'this node has no folder %s\n' "$top" >&2
    return 1
  }
  mkdir -p "$(dirname "$path")" && cp "$1" "$path"
}
stored_file() {
  local path
  client_url "$1"
  path="$client_url"
  [[ -e "$path" ]] || return 1
  size_of "$path" || return
  printf '%s\n' "$size_of"
  adler32 "$path" "$size_of"
}
move_file() {
  local from
  client_url "$1"
  from="$client_url"
  client_url "$2"
  mv -n "$from" "$client_url" || return
  [[ ! -e "$from" ]] || { # not every mv fails then
    printf 'there is a file of that name\n' >&2
    return 1
  }
}
remove_file() {
  client_url "$1"
  rm -f "$client_url"
}

# Calls one of these functions so that SIGTERM is heard. Sets captured to its output, and storage_error to the last line
# of its standard error output. Returns its exit code. Arguments: function, its arguments
storage() {
  local code=0
  capture_both "$@" || code=$?
  learn_from "$code"
  storage_error="${captured_errors%"${captured_errors##*[![:space:]]}"}"
  storage_error="${storage_error##*$'\n'}"
  return "$code"
}

captured_errors="" # as capture_both has set it

# Sets captured to the output of a command, and captured_errors to what it said on the standard error output, the last 10000
# bytes. Returns its exit code. Arguments: command
capture_both() {
  local code=0
  capture print_both "$@" || code=$?
  captured_errors="${captured#*$'\001'}" captured="${captured%%$'\001'*}"
  return "$code"
}
print_both() {
  local code=0 said
  {
    said="$("$@" 2>&1 >&3)" || code=$?
  } 3>&1
  if ((${#said} > 10000)); then # capture takes no more than it can hold
    said="${said: -10000}"
    said="${said#"${said%%[[:space:]]*}"}" # the first word may be a part of a secret
  fi
  printf '\001%s' "$said"
  return "$code"
}

# Is an error of storage one that no further attempt can change? Argument: what storage said
is_refusal() {
  local text="${1,,}"
  case "$text" in
  'status 401 '* | 'status 403 '* | 'status 405 '* | 'status 411 '* | 'status 413 '* | 'status 414 '*) ;;
  'status 501 '* | 'status 507 '*) ;;
  *'permission denied'* | *'not authorized'* | *'unauthorized'* | *'no space left'* | *'quota'*) ;;
  *'read-only file system'*) ;;
  *) return 1 ;;
  esac
}

# Can a folder take outputs? A URL with a secret would get into logs and lists of processes, behind a query there is no
# place for a name, and the server keeps only text. Sets url_kind to the kind of storage. Argument: URL
storage_kind() {
  plain_text 1000 "$1"
  [[ ! "$1" =~ \?|\#|://[^/]*:[^/]*@ && "$plain_text" == "$1" ]] || return 1
  url_kind "$1"
}

input_url="" # as the function of this name has set it

# Sets input_url to the URL of an input as it is stored: the server writes %20 for a space, which divides words here. In the URL of a file,
# and in a path, nothing else is encoded. Argument: URL
input_url() {
  input_url="$1"
  ! url_kind "$1" || [[ "$url_kind" != file ]] || input_url="${1//%20/ }"
}

# Are two checksums the same number? Some storage leaves leading zeros out. Arguments: two texts
same_adler32() {
  [[ "$1" =~ ^[0-9A-Fa-f]{1,8}$ && "$2" =~ ^[0-9A-Fa-f]{1,8}$ ]] && ((16#$1 == 16#$2))
}

# Did the last look at a file (has_arrived) tell its checksum?
tells_checksum() {
  [[ "$captured" == *$'\n'[0-9A-Fa-f]* ]]
}

# Sends a file, and looks whether it arrived whole. An answer that comes too late isn't a failure yet: storage may compute a checksum
# before it answers. Arguments: kind, file, URL, size [bytes], adler32
send_whole() {
  local error
  if storage "send_$1" "$2" "$3"; then
    has_arrived "$1" "$3" "$4" "$5" "$LOOKS"
    return
  fi
  error="$storage_error"
  [[ "$error" != *'curl: (28)'* ]] || ! has_arrived "$1" "$3" "$4" "$5" "$LOOKS" || ! tells_checksum || return 0
  storage_error="$error"
  return 1
}

# Is this very file at a URL already, though nobody has just sent it there? Its checksum must say so: another job's file may
# have the same size. Arguments: kind, URL, size [bytes], adler32
is_stored_already() {
  has_arrived "$1" "$2" "$3" "$4" 1 && tells_checksum
}

# Is a file at this URL, whole? Storage that tells no checksum is believed by the size. Storage that has just taken a file
# may need a moment to know it. Arguments: kind, URL, size [bytes], adler32 or nothing, how often to look
has_arrived() {
  local kind="$1" url="$2" bytes="$3" adler="$4" looks="$5" look=0 stored_bytes="" stored_adler=""
  while [[ -z "$stored_bytes" ]] && ((look < looks)); do
    ((look == 0)) || pause "$(backoff "$look" "$BACKOFF_MS")"
    look=$((look + 1))
    storage "stored_$kind" "$url" || true
    stored_bytes="${captured%%$'\n'*}"
    stored_adler="${captured#*$'\n'}"
    stored_adler="${stored_adler%%$'\n'*}"
  done
  [[ "$stored_bytes" != "$bytes" ]] || [[ -n "$stored_adler" && -n "$adler" ]] || return 0
  [[ "$stored_bytes" != "$bytes" ]] || ! same_adler32 "$stored_adler" "$adler" || return 0
  ((looks == 1)) || log "$url: ${stored_bytes:-nothing} ${stored_adler:-} arrived instead of $bytes $adler"
  return 1
}

# --- delivery ----------------------------------------------------------------------------------------------------

# Delivers a file: sends it under a name that nobody else uses, looks whether it arrived whole, and renames it. A killed
# upload leaves a name that ends in .part. Sets output_url when the file is where it belongs.
# Arguments: kind, URL, file, size [bytes], adler32, word that is unique to this start, number of the attempt
deliver() {
  local kind="$1" url="$2" file="$3" bytes="$4" adler="$5" word="$6" try="$7" part="$2.$6.$7.part" error found="" is_moved=true
  storage_error=""
  if [[ "$kind" != pelican ]]; then
    if ! send_whole "$kind" "$file" "$part" "$bytes" "$adler"; then
      error="$storage_error"
      storage "remove_$kind" "$part" || true
      # An earlier attempt may have arrived after all.
      if ((try > 1)) && has_arrived "$kind" "$url" "$bytes" "$adler" 1; then
        output_url="$url"
        return 0
      fi
      storage_error="$error"
      return 1
    fi
    storage "move_$kind" "$part" "$url" || {
      is_moved=false
      log "$url: renaming failed: $storage_error"
    }
    if has_arrived "$kind" "$url" "$bytes" "$adler" "$LOOKS" && { $is_moved || tells_checksum; }; then
      $is_moved || storage "remove_$kind" "$part" || true # an earlier start has delivered the same file meanwhile
      output_url="$url"
      return 0
    fi
    found="$captured" # under the name of this job's tarball: another's, or what the rename has left
    storage "remove_$kind" "$part" || true
  fi
  # Storage that can't rename: a new name for each attempt, since half an object may stay that can't be replaced.
  [[ "$try" == 1 && -z "$found" ]] || url="${url%.tar.gz}.$word.$try.tar.gz"
  send_whole "$kind" "$file" "$url" "$bytes" "$adler" || return 1
  output_url="$url"
}

queue_name="" # as name_queue has set it

# Sets queue_name to what tells this job's tarballs from those of a job with the same numbers, of another access point or of a queue that
# counts from 1 again: .<access point>.<time of submission>, as far as they are known.
name_queue() {
  queue_name="${schedd:+.${schedd//[!A-Za-z0-9.-]/_}}${qdate:+.$qdate}"
}

# Delivers a tarball to OSGPROD_OUTPUT_URL, in several attempts; without that setting it stays here. Sets output_url.
# Arguments: tarball, name here, size [bytes], adler32, greatest number of attempts
send_outputs() {
  local file="$1" bytes="$3" adler="$4" tries="$5" url="${OSGPROD_OUTPUT_URL:-}" kind try word="${scratch##*.}"
  [[ -n "$url" ]] || return 0
  name_queue
  url="${url%/}/${2%.tar.gz}$queue_name.tar.gz"
  storage_kind "$url"
  kind="$url_kind"
  find_token
  # Numbered by start, this name is unique to this job, unless the database is older or the job ad is missing.
  if is_stored_already "$kind" "$url" "$bytes" "$adler"; then
    output_url="$url" # by an earlier start, which was killed before its report
    return 0
  fi
  if [[ -n "$captured" ]]; then
    url="${url%.tar.gz}.$word.tar.gz"
  fi
  for ((try = 1; try <= tries; try++)); do
    ! deliver "$kind" "$url" "$file" "$bytes" "$adler" "$word" "$try" || return 0
    log "outputs not delivered to $url (attempt $try of $tries): $storage_error"
    # A refusal is looked at once more: an overloaded server may refuse, a token may be renewed.
    ! is_refusal "$storage_error" || ((tries <= try + 1)) || tries=$((try + 1))
    ((try == tries)) || pause "$(backoff "$try" "$BACKOFF_MS")"
  done
  return 1
}

# Removes a delivered file that doesn't count. Argument: URL, or nothing
unsend() {
  [[ -n "$1" ]] || return 0
  storage_kind "$1"
  storage "remove_$url_kind" "$1" || log "$1 does not count, and stays: $storage_error"
}

# --- how the attempt ends ----------------------------------------------------------------------------------------

readonly EXIT_NOT_DELIVERED=74 EXIT_NOT_FETCHED=75 EXIT_MISCONFIGURED=40 EXIT_UNFIT=77 # as reported
readonly PACK_TRIES=3

output_url=""   # where the tarball is, when it was delivered
is_judged=false # did the server call a success a failure?

# The files of a success that has not been reported yet, without their endings: .tar.gz is the tarball, .report is what the report
# will say. A job that starts again in this folder goes on from there. By hand, jobs of another project may have the same
# numbers here.
unreported=""
declare -A written=() # what .report says, as read_written has read it: the first value of each name
written_inputs=""     # the values of its lines merged_input=, each with a line end

free_path=""            # as the function of this name has set it
packed="" pack_error="" # as pack has set them

# Sets free_path to the path for a tarball that stays in this folder. If a file has the name, it is another job's, of another project or
# another queue with the same numbers: then the name gets an additional word. Argument: name without .tar.gz
free_path() {
  free_path="$PWD/$1.tar.gz"
  [[ ! -e "$free_path" && ! -L "$free_path" ]] || free_path="$PWD/$1.${scratch##*.}.tar.gz"
}

# Writes down what the report of a success will say, with resources, and reads it back. The token of the attempt proves that it
# is the same.
# Arguments: name of the tarball, events, number of outputs, size [bytes], adler32, URL or nothing, seconds between
# heartbeats, outputs that the work itself has delivered (JSON) or nothing, its software or nothing, inputs to remove when
# the report is accepted (lines of URL, size, adler32) or nothing
write_down() {
  local file="$unreported.report" try
  for try in 1 2; do # somebody may kill a program
    ! write_report "$file" "$@" || return 0
  done
  return 1
}
write_report() {
  local file="$1"
  shift
  (
    umask 077
    exec >"$file.new" || exit # else the token would go to this job's output
    printf '%s\n' "project=$OSGPROD_PROJECT" "token=$token" "name=$1" "events=$2" "outputs=$3" "bytes=$4" \
      "adler32=$5" "url=$6" "heartbeat_s=$7" "outputs_list=$8" "software=$9" "slices_done=$slices_done" \
      "token_hosts=$osgprod_token_hosts" &&
      printf '%s=%s\n' ${resources[@]+"${resources[@]}"} &&
      { [[ -z "${10}" ]] || printf '%s\n' "${10}" | sed -e '/./!d' -e 's/^/merged_input=/'; } &&
      printf 'complete=yes\n'
  ) 2>/dev/null && mv -fT "$file.new" "$file" 2>/dev/null && read_written && [[ "${written[complete]:-}" == yes ]]
}

# Reads the file of write_down, lines NAME=VALUE. Sets written and written_inputs. Fails when the file can't be read.
read_written() {
  local line name
  written=() written_inputs=""
  [[ -r "$unreported.report" ]] || return 1
  while IFS= read -r line || [[ -n "$line" ]]; do
    name="${line%%=*}"
    case "$name" in
    "$line") ;; # without a value
    merged_input) written_inputs+="${line#*=}"$'\n' ;;
    project | token | token_hosts | name | events | outputs | bytes | adler32 | url | heartbeat_s | outputs_list | software | slices_done | \
      memory_bytes | disk_bytes | fetched_bytes | cpu_s | wall_s | complete)
      [[ -n "${written["$name"]+set}" ]] || written["$name"]="${line#*=}"
      ;;
    esac
  done <"$unreported.report"
}

# Has the work delivered its outputs itself, and left none? Then its tarball holds the log only, and is not sent.
is_delivered() {
  [[ -n "${written[outputs_list]:-}" && "${written[bytes]:-}" == "" ]]
}

# Gives a success that release 0.11 or older has kept here, without the project in its name, today's name.
adopt_unreported() {
  local old="$PWD/unreported_job_${cluster}_${process}"
  [[ -e "$old.report" && "$(sed -n 's/^project=//p' "$old.report" 2>/dev/null | head -n 1)" == "$OSGPROD_PROJECT" ]] || return 0
  mv -f "$old.tar.gz" "$unreported.tar.gz" 2>/dev/null || true
  mv -f "$old.report" "$unreported.report" 2>/dev/null || true
}

# Is there a success of this job, whole, that was not reported?
has_unreported() {
  local file="$unreported.report" bytes adler
  adopt_unreported
  [[ -f "$file" && -r "$file" ]] || return 1
  rm -f "$file.new"
  read_written || return 1
  if [[ "${written[complete]:-}" == yes ]]; then
    [[ -z "${written[url]:-}" ]] && ! is_delivered || return 0
    measure_file "$unreported.tar.gz" 2>/dev/null || true
    [[ "$bytes" != "${written[bytes]:-}" || "$adler" != "${written[adler32]:-}" ]] || return 0
  fi
  log "the result of an earlier start can't be used, and is removed: $file"
  forget_unreported
  return 1
}

forget_unreported() {
  rm -f "$unreported.report" "$unreported.report.new" "$unreported.tar.gz" "$unreported.tar.gz.new" || true
}

# Goes on with the lease of an earlier start: it may have expired, and nobody else has the slice yet.
resume_lease() {
  local heartbeat_s
  token="${written[token]:-}"
  heartbeat_s="${written[heartbeat_s]:-}"
  touch "$scratch/delivering" || return 0
  [[ "$heartbeat_s" =~ ^[1-9][0-9]{0,5}$ ]] || return 0
  request workscript.ping bytes 0
  start_heartbeats "$heartbeat_s" ""
}

# Delivers and reports a success that was written down. Returns this script's exit code.
deliver_and_report() {
  local name bytes adler list software used
  resources=()
  for used in memory_bytes disk_bytes fetched_bytes cpu_s wall_s; do
    resources+=("$used" "${written["$used"]:-}") # as an earlier start has measured it
  done
  slices_done="${written[slices_done]:-}"
  [[ "$slices_done" =~ ^[0-9]{1,6}$ ]] || slices_done=0 # written by an older version
  list="${written[outputs_list]:-}" software="${written[software]:-}"
  name="${written[name]:-}" bytes="${written[bytes]:-}" adler="${written[adler32]:-}"
  token="${written[token]:-}" output_url="${written[url]:-}" osgprod_token_hosts="${written[token_hosts]:-}"
  trust_only
  if [[ -n "${OSGPROD_OUTPUT_URL:-}" && -z "$output_url" ]] && ! is_delivered; then
    if ! send_outputs "$unreported.tar.gz" "$name.tar.gz" "$bytes" "$adler" "$TRIES"; then
      not_delivered "$storage_error"
      return
    fi
    write_down "$name" "${written[events]:-}" "${written[outputs]:-}" "$bytes" "$adler" "$output_url" \
      "${written[heartbeat_s]:-}" "$list" "$software" "$written_inputs" || true
  fi
  if ! report 0 events "${written[events]:-}" outputs "${written[outputs]:-}" output_bytes "$bytes" output_adler32 "$adler" \
    output_url "$output_url" outputs_list "$list" software "$software"; then
    keep_for_later 'the report got no answer'
    return
  fi
  case "$http_status $answer" in
  '200 done')
    remove_merged_inputs
    if [[ -n "$output_url" ]] && ((SLICES > 1)); then
      rm -f "$unreported.tar.gz" # delivered; those of all slices may not fit on the disk
    elif free_path "$name" && mv -fT "$unreported.tar.gz" "$free_path" 2>/dev/null; then
      :
    elif [[ -e "$unreported.tar.gz" ]]; then
      # It may be the only one of a slice that is done. The next slice's would take its place: this job ends.
      log "renaming the tarball to $name.tar.gz failed; it stays here: $unreported.tar.gz"
      rm -f "$unreported.report" "$unreported.report.new"
      slices_done="$SLICES"
      return 0
    elif [[ -z "$output_url" ]] && ! is_delivered; then
      log "the slice is done, but somebody has removed its only tarball, $unreported.tar.gz: requeue it by \`$(recycle_command)\`"
      forget_unreported
      return "$EXIT_NODE_FAULT"
    fi
    forget_unreported
    slices_done=$((10#$slices_done + 1))
    return 0
    ;;
  '200 failed' | '200 node-fault' | '409 superseded' | '409 contradicted')
    unsend "$output_url"
    forget_unreported
    [[ "$http_status" != 200 ]] || is_judged=true
    [[ "$answer" != node-fault ]] || return "$EXIT_NODE_FAULT"
    return "$EXIT_FAILED"
    ;;
  404*) # a restored database may have forgotten the attempt; the work may be needed
    log "the server knows no attempt of this job; the outputs stay: ${output_url:-$unreported.tar.gz}"
    rm -f "$unreported.report"
    return "$EXIT_FAILED"
    ;;
  esac
  log "the report was refused; the outputs stay: ${output_url:-$unreported.tar.gz}"
  return "$EXIT_REFUSED"
}

# Removes the inputs of a merge that the server has accepted, where the project wants that: each that is unchanged.
# An input that can't be removed stays.
remove_merged_inputs() {
  local rest="$written_inputs"
  [[ -n "$rest" ]] || return 0
  if ! are_listed_outputs_there; then
    log 'not all merged files can be seen from here: the inputs are not removed'
    return 0
  fi
  while [[ -n "$rest" ]]; do
    remove_merged_input "${rest%%$'\n'*}"
    rest="${rest#*$'\n'}"
  done
}

# Removes one of them, if it is still the file that was merged. Argument: line of URL, size, adler32
remove_merged_input() {
  local url bytes adler kind line="$1"
  [[ "$line" == *' '*' '* ]] || return 0
  adler="${line##* }" line="${line% *}"
  bytes="${line##* }"
  input_url "${line% *}"
  url="$input_url"
  storage_kind "$url" || return 0
  kind="$url_kind"
  if ! has_arrived "$kind" "$url" "$bytes" "$adler" 1; then
    log "$url has changed since it was merged, and is not removed$(withheld "$url")"
  else
    storage "remove_$kind" "$url" || log "$url can't be removed: $storage_error"
  fi
}

# Are the files that a merge has delivered where it says, as this script sees them? In a container a folder may be another
# one. Each must be listed as the merge script lists files.
are_listed_outputs_there() {
  local list="${written[outputs_list]:-}" rest objects url bytes adler found=0
  local pattern='"url":"([^"\]*)","bytes":([0-9]+),"adler32":"([0-9a-f]*)"'
  rest="$list" objects="${list//[!\{]/}"
  while [[ "$rest" == *'{"kind":'* ]]; do
    rest="${rest#*'{"kind":'}"
    [[ "${rest%%'{"kind":'*}" =~ $pattern ]] || return 1
    url="${BASH_REMATCH[1]}" bytes="${BASH_REMATCH[2]}" adler="${BASH_REMATCH[3]}"
    storage_kind "$url" && has_arrived "$url_kind" "$url" "$bytes" "$adler" "$LOOKS" || return 1
    found=$((found + 1))
  done
  ((found > 0 && found == ${#objects}))
}

# The outputs are here, and their destination doesn't take them. When that may pass and this folder outlives the job, they
# are kept; otherwise another job gets the slice. Returns this script's exit code. Argument: what storage said
not_delivered() {
  if ! is_refusal "$1" && { [[ -z "${_CONDOR_SCRATCH_DIR:-}" ]] || ((CHECKPOINT_CODE > 0)); }; then
    keep_for_later "the outputs could not be delivered: $1"
    return
  fi
  reason_text "outputs not delivered: $1"
  report "$EXIT_NOT_DELIVERED" fault delivery reason "$plain_text" || true
  forget_unreported
  return "$EXIT_LATER"
}

# Leaves a success for this job's next start in the same folder. Returns this script's exit code. Argument: why
keep_for_later() {
  log "$1; the tarball is kept for the next start: $unreported.tar.gz"
  # Not twice for one start of the job: HTCondor starts it again at once, in the same folder.
  if ((CHECKPOINT_CODE > 0)) && ! $is_resumed; then
    return "$CHECKPOINT_CODE"
  fi
  return "$EXIT_LATER"
}

# Packs, delivers and reports a success. Returns this script's exit code.
# Arguments: name of the tarball, slice, seconds between heartbeats
finish_success() {
  local name="$1" count adler bytes events code=0 list rest
  pack "$2" "$unreported.tar.gz" || code=$?
  if ((code > 0)); then
    public_text 500 "the outputs could not be packed: $pack_error"
    if ((code == EXIT_UNFIT)); then # the work's doing: each node would have them like that
      log "$plain_text"
      reported["fault"]=""
      finish_failure "$EXIT_UNFIT" "$1" "$2" "$plain_text"
      return
    fi
    report "$EXIT_NOT_FETCHED" fault node reason "$plain_text" || return "$EXIT_LATER"
    return "$EXIT_NODE_FAULT"
  fi
  count="$packed"
  measure_file "$unreported.tar.gz"
  events="${reported[events]:-}"
  if [[ -n "$events" && ! "$events" =~ ^[0-9]{1,18}$ ]]; then
    log "events=${events:0:40} is not a number of events, and is not reported"
    events=""
  fi
  list="${reported[outputs_list]:-}"
  if [[ -n "$list" ]]; then
    ((count > 0)) || bytes="" adler=""
    rest="$list"
    while [[ "$rest" =~ \"url\"\ *: ]]; do
      rest="${rest#*"${BASH_REMATCH[0]}"}"
      count=$((count + 1))
    done
  fi
  public_text 200 "${reported[software]:-}"
  if ! write_down "$name" "$events" "$count" "$bytes" "$adler" "" "$3" "$list" "$plain_text" "$reported_inputs"; then
    forget_unreported # without a note nobody could report it later
    report "$EXIT_NOT_FETCHED" fault node reason 'the disk of this node is full' || return "$EXIT_LATER"
    return "$EXIT_NODE_FAULT"
  fi
  if must_be_safe_first; then
    stop_heartbeats
    log 'HTCondor saves the tarball now; then this job reports it'
    return "$CHECKPOINT_CODE"
  fi
  deliver_and_report || code=$?
  ! $is_judged || leave_failure "failed_$name" "$2" log-only
  return "$code"
}

# Does the tarball stay here for HTCondor? Then HTCondor must save it before its success is reported: an eviction, or a
# machine that is lost while its files come home, would lose the outputs of a slice that is done.
must_be_safe_first() {
  ((CHECKPOINT_CODE > 0)) && [[ -z "${OSGPROD_OUTPUT_URL:-}" ]] && ! is_delivered
}

# Has this job ended well before, and is its tarball, for which HTCondor was to care, not here? Then it may be lost: a machine
# may have vanished while the tarball came home. By hand, and with OSGPROD_OUTPUT_URL, nothing can have been lost, and a merge has
# delivered its files itself: the server says "its merge".
may_have_lost_outputs() {
  local file
  [[ "$answer" == completed && -z "${OSGPROD_OUTPUT_URL:-}" && -n "${_CONDOR_SCRATCH_DIR:-}" ]] && [[ "$body" != *' its merge'* ]] || return 1
  for file in "$PWD/job_${cluster}_${process}".tar.gz "$PWD/job_${cluster}_${process}".*.tar.gz; do
    [[ ! -e "$file" ]] || return 1
  done
}

# Prints the command that requeues what this job has done.
recycle_command() {
  printf '%s' "osgprod slices recycle $OSGPROD_PROJECT --state done --cluster $cluster --process $process"
}

# Packs what the work left. Sets packed to the number of outputs, and pack_error to why that failed. Returns what pack_outputs returns. It
# packs again when somebody has killed a program, and when the outputs are unfit: files that this job owns are made readable, and those
# of some network file systems seem to change for a moment. Arguments: as of pack_outputs, without the first two
pack() {
  local try=0 code=137
  leftover="$2"
  while (((code == EXIT_UNFIT || code > 128) && try < PACK_TRIES)); do
    if ((code == EXIT_UNFIT)); then
      make_readable "$scratch/work"
      pause 1
    fi
    try=$((try + 1)) code=0
    capture_both pack_outputs "$scratch/work" "$scratch/work.log" "$@" || code=$?
    [[ -z "$captured_errors" ]] || printf '%s\n' "$captured_errors" >&2 || true
  done
  captured_errors="${captured_errors%$'\n'tar: Exiting with failure status*}" # the line before it says why
  pack_error="${captured_errors##*$'\n'}"
  pack_error="${pack_error:-a program ended with $code}"
  ((code == 0)) || rm -f "$2"
  leftover="" packed="${captured%%$'\n'*}"
  return "$code"
}

# Sets bytes and adler to the size and the checksum of a tarball; to nothing when that can't be read. It computes the checksum once
# more when somebody has killed a program. Argument: tarball
measure_file() {
  bytes="" adler=""
  size_of "$1" || size_of "$1" || return
  bytes="$size_of"
  capture adler32 "$1" "$bytes" || capture adler32 "$1" "$bytes" || captured=""
  adler="${captured%$'\n'}"
}

# Leaves the tarball of a failure, its log above all, and tries once to send it. Sets output_url.
# Arguments: name, slice, log-only = without the outputs
leave_failure() {
  local file bytes adler
  free_path "$1"
  file="$free_path"
  output_url=""
  # Outputs that can't be packed must not take the log along.
  pack "$2" "$file" "${3:-}" || pack "$2" "$file" log-only || return 0
  measure_file "$file"
  send_outputs "$file" "${file##*/}" "$bytes" "$adler" 1 || true
}

# Reports a failure and leaves its log. Returns this script's exit code.
# Arguments: exit code to report, name of the tarball, slice, reason
finish_failure() {
  leave_failure "failed_$2" "$3"
  plain_text 20 "${reported[fault]:-}"
  report "$1" output_url "$output_url" fault "$plain_text" reason "$4" \
    bad_inputs "${reported[bad_inputs]:-}" outputs_list "${reported[outputs_list]:-}" log_tail "$(log_tail)" ||
    return "$EXIT_LATER"
  # Which codes are faults of the node, the project says.
  [[ "$answer" != node-fault ]] || return "$EXIT_NODE_FAULT"
  [[ "$answer" != refused && "$http_status" != 400 ]] || return "$EXIT_REFUSED"
  return "$EXIT_FAILED"
}

# --- the story ---------------------------------------------------------------------------------------------------

cluster="" process=""                 # HTCondor's identity of the job
schedd="" qdate=""                    # the job's access point, and when it was submitted there [s since 1970]
TRIES=""                              # OSGPROD_TRIES
TIME_LEFT_S=""                        # OSGPROD_TIME_LEFT_S, if it is set
ends_at=""                            # when the job must end [s since 1970]; nothing = not known
ad_value="" ad_number="" time_left="" # as the functions of these names have set them
magic="" job_key="" bearer="" host="" site=""
token=""               # of the attempt
osgprod_token_hosts="" # of a merge: the hosts of the project's settings, as the server names them
after=""               # token of the success after which the job asks for another slice
slices_done=0          # successes of this job, as far as this start knows
is_resumed=false       # does this start go on from an earlier one?

# Prints the text of a file, without NULs and without the line ends at its end, as osgprod project set-magic reads it.
# Argument: file
text_of() {
  local text
  text="$(tr -d '\000' <"$1" && printf x)" || return 1
  text="${text%x}"
  printf '%s' "${text%"${text##*[!$'\r\n']}"}"
}

# Sets ad_value to the value of an attribute as a ClassAd file has it, or to nothing when it isn't there. Arguments: file, name
ad_value() {
  local line key name="${2,,}"
  ad_value=""
  [[ -f "$1" && -r "$1" ]] || return 0
  while IFS= read -r line || [[ -n "$line" ]]; do
    key="${line%%=*}"
    key="${key//[[:space:]]/}"
    if [[ "$line" == *=* && "${key,,}" == "$name" ]]; then
      line="${line#*=}"
      line="${line#"${line%%[![:space:]]*}"}"
      ad_value="${line%"${line##*[![:space:]]}"}"
      return 0
    fi
  done <"$1"
}

# Sets ad_number to the value if it is a whole number of at most 15 digits, and to nothing for anything else.
# Arguments: file, name
ad_number() {
  ad_value "$1" "$2"
  ad_number=""
  [[ ! "$ad_value" =~ ^[0-9]{1,15}$ ]] || ad_number="$((10#$ad_value))"
}

# Sets schedd and qdate from the job ad. They stay the same over restarts of the job, unlike all that tells the node.
find_identity() {
  local id
  ad_value "${_CONDOR_JOB_AD:-}" GlobalJobId
  id="${ad_value#\"}"
  id="${id%\"}"
  ad_number "${_CONDOR_JOB_AD:-}" QDate
  qdate="$ad_number"
  [[ "$id" == *'#'* ]] || return 0
  plain_text 128 "${id%%#*}"
  schedd="$plain_text"
  id="${id##*#}"
  [[ -n "$qdate" || ! "$id" =~ ^[0-9]{1,15}$ ]] || qdate="$((10#$id))"
}

# Sets ends_at to the earliest time by which the job must end: what the pilot, the job's allowed duration and
# OSGPROD_TIME_LEFT_S say. A pilot that names only GLIDEIN_ToRetire is taken to end then.
find_end() {
  local job="${_CONDOR_JOB_AD:-}" machine="${_CONDOR_MACHINE_AD:-}" start executing
  ad_number "$machine" GLIDEIN_ToDie
  [[ -n "$ad_number" ]] || ad_number "$machine" GLIDEIN_ToRetire
  ((ad_number == 0)) || must_end_at "$ad_number"
  ad_number "$job" JobCurrentStartDate
  start="$ad_number"
  [[ -n "$start" ]] || printf -v start '%(%s)T' -1
  ad_number "$job" AllowedJobDuration
  [[ -z "$ad_number" ]] || must_end_at "$((start + ad_number))"
  ad_number "$job" JobCurrentStartExecutingDate
  executing="$ad_number"
  ((executing >= start)) || executing="$start" # not there yet, or that of an earlier start
  ad_number "$job" AllowedExecuteDuration
  [[ -z "$ad_number" ]] || must_end_at "$((executing + ad_number))"
  [[ -z "$TIME_LEFT_S" ]] || must_end_at "$((start + TIME_LEFT_S))"
}
# Argument: time [s since 1970]
must_end_at() {
  [[ -n "$ends_at" ]] && ((ends_at <= $1)) || ends_at="$1"
}

# Sets time_left to how long this job may still run [s, not below 0], or to nothing when that is not known.
time_left() {
  local now
  time_left=""
  [[ -n "$ends_at" ]] || return 0
  printf -v now '%(%s)T' -1
  time_left="$((ends_at > now ? ends_at - now : 0))"
}

# Reads and checks the environment; ends the script, and names the setting, when one is wrong.
configure() {
  local name
  number_setting OSGPROD_SLICES 1 1 100000 SLICES || die "$EXIT_REFUSED" "$setting_error"
  number_setting OSGPROD_TRIES 10 1 1000 TRIES || die "$EXIT_REFUSED" "$setting_error"
  number_setting OSGPROD_BACKOFF_MS 1000 1 600000 BACKOFF_MS || die "$EXIT_REFUSED" "$setting_error"
  number_setting OSGPROD_MAX_WAIT_S 600 0 604800 MAX_WAIT_S || die "$EXIT_REFUSED" "$setting_error"
  [[ -z "${OSGPROD_TIME_LEFT_S:-}" ]] ||
    number_setting OSGPROD_TIME_LEFT_S 0 0 999999999 TIME_LEFT_S || die "$EXIT_REFUSED" "$setting_error"
  number_setting OSGPROD_MAX_LOG_BYTES 10000000 0 999999999 MAX_LOG_BYTES || die "$EXIT_REFUSED" "$setting_error"
  number_setting OSGPROD_CHECKPOINT_CODE 0 0 125 CHECKPOINT_CODE || die "$EXIT_REFUSED" "$setting_error"
  case "$CHECKPOINT_CODE" in
  1 | 2 | "$EXIT_FAILED" | "$EXIT_NODE_FAULT" | "$EXIT_LATER" | "$EXIT_REFUSED")
    die "$EXIT_REFUSED" "OSGPROD_CHECKPOINT_CODE is $CHECKPOINT_CODE, which says something else: use 85"
    ;;
  esac
  [[ -n "${OSGPROD_URL:-}" ]] || die "$EXIT_REFUSED" 'OSGPROD_URL is not set: the server, like https://host/osgprod'
  [[ "$OSGPROD_URL" =~ ^https?://[^/] ]] || die "$EXIT_REFUSED" 'OSGPROD_URL does not begin with https:// or http://'
  [[ ! "$OSGPROD_URL" =~ ^https?://[^/?#]*@ ]] || # it would be on curl's command line
    die "$EXIT_REFUSED" 'OSGPROD_URL contains a user or a password: use OSGPROD_MAGIC_FILE or a bearer token'
  [[ -n "${OSGPROD_PROJECT:-}" ]] || die "$EXIT_REFUSED" 'OSGPROD_PROJECT is not set'
  if [[ -n "${OSGPROD_OUTPUT_URL:-}" ]]; then
    storage_kind "$OSGPROD_OUTPUT_URL" || die "$EXIT_REFUSED" \
      "OSGPROD_OUTPUT_URL is not a folder, or contains a query or a password; schemes: $URL_SCHEMES"
  elif ((SLICES > 1 && CHECKPOINT_CODE == 0)) && [[ -n "${_CONDOR_SCRATCH_DIR:-}" ]]; then
    die "$EXIT_REFUSED" "OSGPROD_SLICES is $SLICES: an eviction would lose the tarballs of slices that are done;\
 set OSGPROD_OUTPUT_URL (outputs= of osgprod.sub, in place of destination=), or OSGPROD_CHECKPOINT_CODE to the submit file's\
 checkpoint_exit_code"
  fi
  job_key="${OSGPROD_JOB_KEY:-}"
  [[ -z "$job_key" || "$job_key" =~ ^[A-Za-z0-9._-]{1,128}$ ]] ||
    die "$EXIT_REFUSED" 'OSGPROD_JOB_KEY: use 1 to 128 letters, digits, dots, underscores or hyphens'
  magic="${OSGPROD_MAGIC:-}"
  if [[ -n "${OSGPROD_MAGIC_FILE:-}" ]]; then
    magic="$(text_of "$OSGPROD_MAGIC_FILE" 2>/dev/null)" ||
      die "$EXIT_REFUSED" "OSGPROD_MAGIC_FILE: $OSGPROD_MAGIC_FILE can't be read"
  fi
  # The work runs in another folder.
  for name in OSGPROD_MAGIC_FILE X509_USER_PROXY X509_CERT_DIR BEARER_TOKEN_FILE; do
    [[ -z "${!name:-}" || "${!name}" == /* ]] || export "$name=$PWD/${!name}"
  done
  [[ -r "/proc/$$/stat" ]] || die "$EXIT_NODE_FAULT" '/proc is not mounted on this node'
  [[ -w . ]] || die "$EXIT_NODE_FAULT" "this folder can't be written: $PWD"
  command -v curl >/dev/null || die "$EXIT_NODE_FAULT" 'curl is not installed on this node'
  find_token
  [[ -n "$magic$bearer" ]] || log 'neither a magic nor a bearer token was found: set OSGPROD_MAGIC_FILE, or BEARER_TOKEN_FILE'
}

# Runs one attempt. Returns this script's exit code. Argument: cores
attempt() {
  local nstarts slice name heartbeat_s reason code=0
  checkout "$1" || code=$?
  if ((code > 0)); then
    ((slices_done == 0)) || log "no other slice was assigned: this job ends (slices done: $slices_done)"
    return "$((slices_done > 0 ? 0 : code))"
  fi
  if [[ "$answer" != assigned ]]; then
    log "$answer: $body" # nothing runs, and there is nothing to report
    may_have_lost_outputs || return 0
    log 'the tarball of this job is not here: if it did not come home either, it is lost'
    log "see \`osgprod jobs $OSGPROD_PROJECT $cluster.$process\`; requeue its slice by \`$(recycle_command)\`, then remove this job"
    return "$EXIT_REFUSED"
  fi
  find_header Osgprod-Token "$head"
  token="$header"
  find_header Osgprod-Token-Hosts "$head"
  osgprod_token_hosts="$header"
  trust_only
  find_header Osgprod-Nstarts "$head"
  nstarts="$header"
  find_header Osgprod-Slice "$head"
  slice="$header"
  find_header Osgprod-Heartbeat "$head"
  heartbeat_s="$header"
  [[ "$heartbeat_s" =~ ^[0-9]{1,6}$ ]] || heartbeat_s=0
  log "start $nstarts on $slice"
  name="job_${cluster}_${process}"
  [[ ! "$nstarts" =~ ^[0-9]{1,9}$ || "$nstarts" == 1 ]] || name+=".$nstarts" # another start may have sent its own
  run_work "$((10#$heartbeat_s))"
  if ((work_status != 0)); then
    stop_heartbeats # did it end the work?
  fi
  if (((heartbeat_status == SUPERSEDED || heartbeat_status == WEDGED) && work_status != 0)); then
    report "$work_status" reason 'stopped by the server' || true
    # Another attempt was faster, or has the slice now: that is not this node's fault. No progress may be.
    return "$((heartbeat_status == WEDGED ? EXIT_NODE_FAULT : EXIT_FAILED))"
  fi
  if ((work_status == EXIT_MISCONFIGURED)) && [[ -n "${reported[misconfigured]:-}" ]]; then
    reason_text "${reported[misconfigured]}"
    reason="$plain_text"
    report "$EXIT_MISCONFIGURED" fault setting reason "configuration: $reason" || true
    die "$EXIT_REFUSED" "configuration: $reason"
  fi
  reason=""
  disk_has_room || reason='the disk of this node is full'
  ((work_status == 0)) || [[ -e "$scratch/work.log" && -d "$scratch/work" ]] ||
    reason="the folder of the work or its log is gone, or could not be made: has somebody removed $scratch, is the disk full?"
  if [[ -n "$reason" ]]; then
    # A node fault: the data is not the cause, and the outputs may be incomplete.
    remove_tree "$scratch/work"
    report "$EXIT_NOT_FETCHED" fault node reason "$reason" || return "$EXIT_LATER"
    return "$EXIT_NODE_FAULT"
  fi
  if ((work_status == 0)); then
    finish_success "$name" "$slice" "$((10#$heartbeat_s))"
  else
    # To pack and send the outputs of a failure may take longer than the lease still lasts.
    start_heartbeats "$((10#$heartbeat_s))" "" "$((10#$heartbeat_s < 5 ? 10#$heartbeat_s : 5))"
    last_words
    finish_failure "$work_status" "$name" "$slice" "$plain_text"
  fi
}

# Makes ready for another attempt, after a success for another slice of this job.
forget_attempt() {
  after=""
  [[ "$answer" != "done" ]] || after="$token"
  reported=() reported_inputs=""
  token="" output_url="" resources=() work_status=0 heartbeat_status=0 is_judged=false is_resumed=false
  remove_tree "$scratch/work"
  rm -f "$scratch/work.log" "$scratch/delivering"
  if [[ -e "$scratch/work" ]]; then # the next slice's tarball would hold its files
    log "$scratch/work can't be removed: this job ends with what it has done"
    slices_done="$SLICES"
  fi
  while read -r -t 0.01 -u 8 _; do :; done # what look has left
}

main() {
  local code=0
  cluster="${1:-}" process="${2:-}"
  log_name="osgprod_exec $cluster.$process"
  (($# == 2 || $# == 3)) || die "$EXIT_REFUSED" "usage: ${0##*/} <cluster> <process> [<ncpus>]"
  configure
  # Not HOSTNAME of bash: it comes from the environment, which may be the submitter's.
  { IFS= read -r host </proc/sys/kernel/hostname; } 2>/dev/null || host="$(uname -n)"
  plain_text 128 "$host"
  host="$plain_text"
  ad_value "${_CONDOR_MACHINE_AD:-}" GLIDEIN_Site
  [[ ! "$ad_value" =~ ^\"(.*)\"$ ]] || site="${BASH_REMATCH[1]}"
  plain_text 128 "${OSGPROD_SITE:-$site}"
  site="$plain_text"
  find_identity
  find_end
  unreported="$PWD/unreported_job_${cluster}_$process.$OSGPROD_PROJECT"
  hear_signals # before EXIT, whose trap would take its end for a node fault
  trap cleanup EXIT
  trap : PIPE # a closed output stops nothing
  make_scratch
  if has_unreported; then
    is_resumed=true
    log 'an earlier start of this job has left a success that was not reported'
    resume_lease
    deliver_and_report || code=$?
    # A success that does not count does not end the job: HTCondor may start the job with the same files again.
    ((code == 0 || code == EXIT_FAILED)) || return "$code"
    [[ "$http_status" != 404 ]] || return "$code" # the next success would take the place of the outputs that stay
    forget_attempt
  fi
  while ((slices_done < SLICES)); do
    attempt "${3:-1}" # another code than 0 ends this script
    [[ "$answer" == "done" ]] || return 0
    ((slices_done >= SLICES)) || forget_attempt # cleanup removes the last slice's files
  done
}

# Read as one command, so that nothing more is read when this file changes meanwhile.
if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then
  main "$@"
  exit
fi
