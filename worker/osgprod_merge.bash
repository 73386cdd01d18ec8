#!/usr/bin/env bash
#
# osgprod_merge.bash: merges the outputs of a raw data file's slices, and delivers one file of each kind.
# The server fills in the lines below for the job that asks. Copy this file to DOCUMENT_ROOT/PROJECT/ and change its table
# of kinds. docs/merging.md tells more.
# Made of: worker/lib/merge-head.bash worker/lib/shell.bash worker/lib/merge-settings.bash worker/lib/log.bash worker/lib/settings.bash worker/lib/text.bash worker/lib/backoff.bash worker/lib/url.bash worker/lib/token.bash worker/lib/http.bash worker/lib/pelican.bash worker/lib/adler32.bash worker/lib/disk.bash worker/lib/merge-process.bash condor/lib/storage.bash worker/lib/work-fetch.bash worker/lib/merge-fetch.bash worker/lib/merge-kinds.bash worker/lib/merge-deliver.bash worker/lib/merge-program.bash worker/lib/merge-main.bash
#
# ncpus:
# cluster:
# process:
# nstarts:
# project:
# source:
# started:
#
# Environment:
#     OSGPROD_HADD         command that merges ROOT files: it gets the output and the inputs as arguments [hadd -f -v 1]
#     OSGPROD_HDDMCAT      command that joins HDDM files: it gets the inputs, and prints the output [hddmcat]
#     OSGPROD_PYTHON       Python 3.6 or later, for EVIO files, compressed HDDM files, and to count events [python3]
#     OSGPROD_OUTPUT_URL   where the project has no merge_output_url, merged files go to the folder OSGPROD_PROJECT in this
#                          one [none]
#     OSGPROD_REPORT       file for what the exit report should tell [osgprod_report.txt]
#     OSGPROD_TRIES        attempts of a transfer, 1 to 1000 [8]
#     OSGPROD_BACKOFF_MS   pause after the first of these, doubled each time up to 32 fold, 1 to 600000 [ms; 1000]
#     OSGPROD_TOKEN_HOSTS  hosts that may see the credentials, beside those that OSGPROD_URL, OSGPROD_OUTPUT_URL and the
#                          server name: host or host:port, separated by spaces [none]
#     BEARER_TOKEN, BEARER_TOKEN_FILE, X509_USER_PROXY, X509_CERT_DIR  credentials, and authorities to trust
# Exit codes: 0 = merged and delivered; 65 = inputs are bad, bad_inputs in the report names them; 66 = the result is not
# what it must be; 74 = not delivered; 75 = this node can't do it; 127 = a program is missing on this node; 40 = a setting
# is wrong; 64 = no merge is filled in (by hand; 40 in a job).

#osgprod_task=slice or merge
#osgprod_inputs=an array, an input each: URL BYTES ADLER32 BLOCK1 BLOCK2, in the order of blocks; - = unknown
#osgprod_run=number of the run
#osgprod_seqno=number of the file in its run; empty = the whole run is merged
#osgprod_merge_output_url=folder for the merged files; {kind} stands for the kind
#osgprod_token_hosts=hosts of the project's settings, which may see the credentials
#osgprod_merge_cleanup=keep or delete the inputs when the merge is done
#osgprod_ncpus=cores that the job has
#osgprod_token=of this attempt
#osgprod_lease_s=how long the lease lasts without a heartbeat

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

# --- the kinds -----------------------------------------------------------------------------------------------------

# What becomes of the files in the slices' tarballs. The first line whose pattern fits a file's name counts for it.
#   kind    a word, for {kind} in URLs; {stem} = the file's name without its extension and without the slice's name
#   files   pattern of names, as bash has them
#   how     root (hadd), hddm (hddmcat), evio (joined by this script), cat (one behind the other), tar (a tarball with a
#           folder BLOCK1,BLOCK2 for each slice)
#   merged  name of the merged file; {run} and {seqno} have 6 and 3 digits, and _{seqno} is left out for a whole run. Both must
#           be there, unless merge_output_url has them
#   slices  all = when one slice has it, each must; must = each slice must have it; some = slices may lack it
merge_kinds=(
  # kind             files                   how   merged                            slices
  'BCAL-LED          *.BCAL-LED.evio         evio  {kind}_{run}_{seqno}.evio         all'
  'CCAL-LED          *.CCAL-LED.evio         evio  {kind}_{run}_{seqno}.evio         all'
  'DIRC-LED          *.DIRC-LED.evio         evio  {kind}_{run}_{seqno}.evio         all'
  'FCAL-LED          *.FCAL-LED.evio         evio  {kind}_{run}_{seqno}.evio         all'
  'random            *.random.evio           evio  {kind}_{run}_{seqno}.evio         all'
  'ps                *.ps.evio               evio  {kind}_{run}_{seqno}.evio         all'
  'omega             *.omega.evio            evio  {kind}_{run}_{seqno}.evio         some'
  'sync              *.sync.evio             evio  {kind}_{run}_{seqno}.evio         some'
  '{stem}            *.evio                  evio  {kind}_{run}_{seqno}.evio         some'
  'dana_rest         dana_rest.hddm          hddm  {kind}_{run}_{seqno}.hddm         all'
  'converted_random  converted_random.hddm   hddm  {kind}_{run}_{seqno}.hddm         some'
  '{stem}            *.hddm                  hddm  {kind}_{run}_{seqno}.hddm         some'
  'hd_root           hd_root.root            root  {kind}_{run}_{seqno}.root         all'
  '{stem}            *.root                  root  {kind}_{run}_{seqno}.root         some'
  'job_info          *                       tar   {kind}_{run}_{seqno}.tgz          some'
)
PYTHON="${OSGPROD_PYTHON:-python3}"
set -f # no patterns
# shellcheck disable=SC2206  # words
hadd_command=(${OSGPROD_HADD:-hadd -f -v 1}) hddmcat_command=(${OSGPROD_HDDMCAT:-hddmcat})
set +f

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

# --- Pelican -----------------------------------------------------------------------------------------------------

readonly MAX_CACHES=6 # of a director's answer

# Prints "HOST[:PORT] PATH" of a Pelican URL: the federation's host, and the path of the object. osdf:///PATH and
# osdf://FOLDER/PATH name no host. Argument: osdf or pelican URL
federation_of() {
  local object="${1#*://}" host="$OSDF_HOST"
  object="${object%%[?#]*}"
  if [[ "${1,,}" == pelican:* ]]; then
    host="${object%%/*}"
    object="${object#"$host"}"
  fi
  printf '%s /%s' "$host" "${object#"${object%%[!/]*}"}"
}

# Prints the places that a federation's director names for an object, the first one is to be tried first, a line each:
# "public URL", or "token URL" where the director demands a token. Prints "failed WORD WAIT_S REASON" when it names none
# (WORD and WAIT_S: see verdict). Fails when a program was killed. Two requests: for the federation's configuration, and to its
# director.
# Source: https://docs.pelicanplatform.org; RFC 6249 for Link with rel=duplicate and pri
# Argument: osdf or pelican URL
pelican_places() {
  local host path text director kind=public url named
  local -a places=()
  read -r host path <<<"$(federation_of "$1")"
  shows_credentials=false
  text="$(http_transfer "https://$host/.well-known/pelican-configuration" --max-time 60 --max-filesize 65536 ||
    printf '\nfailed: %s' "${http_error:-status $http_status}")" || text=$'\nfailed: somebody has killed the request'
  if [[ "$text" == *$'\n'failed:* ]]; then
    printf 'failed again 0 no configuration of the federation %s: %s\n' "$host" "${text##*$'\n'failed: }"
    return 0
  fi
  text="${text//\\\//\/}" # JSON may write / as \/
  if [[ ! "$text" =~ \"director_endpoint\"[[:space:]]*:[[:space:]]*\"(https://[^\"[:space:]]+)\" ]]; then
    printf 'failed never 0 the federation %s names no director\n' "$host"
    return 0
  fi
  director="${BASH_REMATCH[1]%/}"
  # A director answers with a redirect. Should the object itself come, a byte of it is enough.
  http_request "$director$path" --max-time 60 -r 0-0 >/dev/null || true
  if [[ "$http_status" != 30[1278] ]]; then
    case "$http_status" in
    403 | 404) text=refused ;;
    *) text=again ;;
    esac
    find_header retry-after "$http_head"
    url="$header"
    [[ "$url" =~ ^[0-9]{1,9}$ ]] || url=0
    [[ "$http_status" != 000 ]] || http_status="${http_error:-nothing}"
    printf 'failed %s %s the director answers %s instead of a redirect\n' "$text" "$url" "$http_status"
    return 0
  fi
  find_header x-pelican-namespace "$http_head"
  [[ ! "$headers" =~ require-token=[Tt]rue ]] || kind=token
  named="$(named_places "$http_head")" || return
  while IFS= read -r url; do
    case "$kind $url" in
    *' '[Hh][Tt][Tt][Pp][Ss]://?* | 'public '[Hh][Tt][Tt][Pp]://?*) places[${#places[@]}]="$kind $url" ;;
    esac
  done <<<"$named"
  ((${#places[@]} > 0)) || places=('failed again 0 the director names no cache')
  printf '%s\n' "${places[@]:0:MAX_CACHES}"
}

# Prints the URLs of a redirect, one a line: its Location, then its Link headers by their pri, none twice. The query of
# the Location, which may be a signature, makes no difference. Argument: head
named_places() {
  local location links attributes url pri sorted seen=$'\n' pattern='<([^<>[:space:]]+)>([^<]*)(.*)'
  find_header location "$1"
  location="$header"
  find_header link "$1"
  links="${headers//$'\n'/,}"
  [[ -z "$location" ]] || printf '%s\n' "$location"
  sorted="$(
    while [[ "$links" =~ $pattern ]]; do
      url="${BASH_REMATCH[1]}" attributes="${BASH_REMATCH[2]}" links="${BASH_REMATCH[3]}" pri=999999
      [[ "$attributes" != *rel=* || "$attributes" =~ rel=\"?duplicate ]] || continue
      [[ ! "$attributes" =~ pri=\"?([0-9]{1,6}) ]] || pri="$((10#${BASH_REMATCH[1]}))"
      printf '%s %s\n' "$pri" "$url"
    done | sort -s -n -k 1,1
  )" || return
  while IFS=' ' read -r pri url; do
    [[ -n "$url" && "$url" != "${location%%\?*}" && "$seen" != *$'\n'"$url"$'\n'* ]] || continue
    seen+="$url"$'\n'
    printf '%s\n' "$url"
  done <<<"$sorted"
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

# --- disk --------------------------------------------------------------------------------------------------------

readonly PROBE_BYTES=1048576

disk_error="" # as probe_disk has set it

# Can a small file still be written in a folder? Sets disk_error to the system's words when it can't, else to nothing.
# Argument: folder
probe_disk() {
  local probe="$1/.osgprod_probe.$$" code
  for _ in 1 2; do # somebody may kill a program
    code=0
    disk_error="$(exec 2>&1 && exec head -c "$PROBE_BYTES" /dev/zero >"$probe")" || code=$?
    ((code > 128)) || break
  done
  rm -f "$probe"
  disk_error="${disk_error##*: }"
  ((code > 0)) || disk_error=""
  ((code == 0)) || disk_error="${disk_error:-no reason given}" # by a limit on the size of files, for example
}

# --- commands ----------------------------------------------------------------------------------------------------

# What condor/lib/process.bash has for osgprod_exec.sh, in its process group: osgprod_exec.sh ends that as a whole. pause is
# the work script's.

# Sets captured to what a command printed. Returns its exit code. Arguments: command
capture() {
  local status=0
  captured="$("$@")" || status=$?
  return "$status"
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

# --- fetch the slice ---------------------------------------------------------------------------------------------

readonly EXIT_MISCONFIGURED=40 EXIT_NOT_FILLED=64 EXIT_NODE_FAULT=75
readonly LIMIT_EXCEEDED=153 # SIGXFSZ has killed a program
# A cache that is overloaded answers 403 or 404 for a file that exists: such an answer is believed when it comes so often.
readonly MAX_REFUSALS=4

# This node can't do it: the exit code says so to osgprod_exec.sh, and the last line of the log says why.
# Arguments: message
node_fault() {
  rm -f "${slice:-}" # first: on a full disk nothing can be logged
  [[ -z "${OSGPROD_REPORT:-}" ]] || add_to_report "fault=${fault:-node}" || true
  log "$*"
  exit "$EXIT_NODE_FAULT"
}

# Waits. Where sleep knows whole seconds only, a little longer. Argument: seconds, with decimals
pause() {
  sleep "$1" 2>/dev/null || sleep "$((${1%.*} + 1))" || true
}

# A setting is wrong: no other node and no other slice would do better. osgprod_exec.sh finds the line in the report file,
# and reports fault=setting, so that the server requeues the slice; HTCondor holds the job. Arguments: message
misconfigured() {
  rm -f "${slice:-}"
  add_to_report "misconfigured=$*" || true
  log "$*"
  exit "$EXIT_MISCONFIGURED"
}

# Adds a line to the file for the exit report. Fails when the line can't be written. Argument: line
add_to_report() {
  { printf '%s\n' "$1" >>"${OSGPROD_REPORT:-osgprod_report.txt}"; } 2>/dev/null
}

# Prints a URL as a log may show it: without a query and a password, which may be secrets. Argument: URL
shown_url() {
  local url="${1%%\?*}" place
  place="${url#*://}"
  place="${place%%/*}"
  [[ "$url" != *://* || "$place" != *@* ]] || url="${url%%://*}://${place##*@}${url#*"$place"}"
  printf '%s' "$url"
}

# Appends the bytes that a hexadecimal text stands for. Arguments: text, at most a few 1000 digits; file
append_hex() {
  local escaped="" at
  for ((at = 0; at < ${#1}; at += 2)); do
    escaped+="\\x${1:at:2}"
  done
  { printf '%b' "$escaped" >>"$2"; } 2>/dev/null
}

# Each kind of source (url_kind), but pelican (see read_place), has a function read_KIND URL OFFSET LENGTH that prints the
# bytes from OFFSET on, or as many as arrive. If bytes are missing, it calls "verdict".

# Tells read_place, on descriptor 5, whether to retry the missing bytes. Arguments: "again", "refused" (may be true) or
# "never"; exit code of the client; pause that the server wants [s], or nothing; reason
verdict() {
  local wait_s="$3"
  [[ "$wait_s" =~ ^[0-9]{1,9}$ ]] || wait_s=0
  printf '%s %s %s %s\n' "$1" "$2" "$wait_s" "${4//$'\n'/ }" >&5
}

read_file() {
  local path size=""
  client_url "$1"
  path="$client_url"
  ! size_of "$path" 2>/dev/null || size="$size_of"
  if [[ -z "$size" ]]; then
    verdict never 0 '' "can't be read here"
  elif ((size < $2 + $3)); then
    verdict never 0 '' "is shorter than when it was registered: $size bytes"
  else
    verdict again 0 '' 'broke off'
    tail -c "+$(($2 + 1))" "$path" 2>/dev/null | head -c "$3" || true # tail ends by SIGPIPE
  fi
}

read_http() {
  local code=0
  http_transfer "$1" -r "$2-$(($2 + $3 - 1))" || code=$?
  case "$http_status" in
  206)
    find_header content-range "$http_head"
    if [[ "$header" != "bytes $2-"* ]]; then
      verdict never "$code" '' 'another range came'
    else
      verdict again "$code" '' "broke off: ${http_error:-too few bytes}"
    fi
    ;;
  200)
    find_header content-length "$http_head"
    if [[ "$2" == 0 && "$header" == "$3" ]]; then
      verdict again "$code" '' "broke off: ${http_error:-too few bytes}"
    else
      verdict never "$code" '' 'the server ignores byte ranges'
    fi
    ;;
  403 | 404)
    find_header retry-after "$http_head"
    verdict refused "$code" "$header" "status $http_status$(withheld "$http_url")"
    ;;
  401) verdict never "$code" '' "status 401$(withheld "$http_url")" ;;
  410 | 416) verdict never "$code" '' "status $http_status" ;;
  000) verdict again "$code" '' "no answer: ${http_error:-none}" ;;
  [45]??)
    find_header retry-after "$http_head"
    verdict again "$code" "$header" "status $http_status"
    ;;
  *) verdict again "$code" '' "status $http_status: $http_error" ;;
  esac
}

# By XRootD's Python bindings. The Python program itself writes the verdict, in each case.
read_root() {
  client_url "$1"
  client_for "$1" "$xrootd_python" -c '
import os, sys
from XRootD import client
url, offset, length, withheld = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
reason, word = "broke off", "again"
with client.File() as file:
    status, _ = file.open(url)
    while status.ok and length > 0:
        status, data = file.read(offset, min(length, 8 << 20))
        if not data:
            break
        sys.stdout.buffer.write(data)
        offset, length = offset + len(data), length - len(data)
if not status.ok:
    reason = " ".join(status.message.split())
    if status.errno in (3010, 3011):  # not authorized, not found
        word = "refused"
    reason += withheld
sys.stdout.buffer.flush()
os.write(5, ("%s 0 0 %s\n" % (word, reason)).encode("utf-8", "replace"))
' "$client_url" "$2" "$3" "$(withheld "$1")" || true
}

# Where the bytes may come from. Doors are the URLs of the whole file that the server gave, in order of preference; a
# Pelican door stands for the caches that its director names. Places are those left to try in this round, "KIND URL" with
# KIND door, public or token. The first place is read from as long as it serves. A round ends when each place has failed.
doors=()
places=()
declare -A given_up=() # URLs that would fail again
declare -A refusals=() # how often a URL was refused, which may be false

# Begins a round. Fails when all doors were given up.
begin_round() {
  local door
  places=()
  for door in "${doors[@]}"; do
    [[ -n "${given_up["$door"]:-}" ]] || places[${#places[@]}]="door $door"
  done
  ((${#places[@]} > 0))
}

# Replaces the first place, a Pelican door, by its caches. Fails when there is none; then it sets word, wait_s and reason
# as a verdict has them.
ask_director() {
  local line named
  local -a caches=()
  named="$(pelican_places "${places[0]#* }")" || {
    word=again wait_s=0 reason='the director was not asked: somebody has killed a program'
    return 1
  }
  while IFS= read -r line; do
    if [[ "$line" == failed\ * ]]; then
      IFS=' ' read -r word wait_s reason <<<"${line#* }"
      return 1
    fi
    [[ "$line" != token\ * ]] || find_token
    if [[ "$line" == token\ * ]] && ! may_have_credentials "${places[0]#* }"; then
      word=never wait_s=0 reason="the director demands a token$(withheld "${places[0]#* }")"
      return 1
    fi
    if [[ "$line" == token\ * && -z "$bearer" ]]; then
      word=never wait_s=0 reason='the director demands a token, and this job has none'
      return 1
    fi
    [[ -n "${given_up["${line#* }"]:-}" ]] || caches[${#caches[@]}]="$line"
  done <<<"$named"
  if ((${#caches[@]} == 0)); then
    word=refused wait_s=0 reason='no cache that the director names has served the file'
    return 1
  fi
  places=("${caches[@]}" "${places[@]:1}")
}

# The first place has failed: the next one is tried. Argument: the verdict's word
leave_place() {
  local url="${places[0]#* }" refused
  places=("${places[@]:1}")
  if [[ "$1" == refused ]]; then
    refused=$((${refusals["$url"]:-0} + 1))
    refusals["$url"]="$refused"
    ((refused < MAX_REFUSALS)) || given_up["$url"]=true
  elif [[ "$1" == never ]]; then
    given_up["$url"]=true
  fi
}

place_name="" # as the function of this name has set it

# Sets place_name to a place without its path, and without a password, for logs and the report. Argument: URL
place_name() {
  local place="${1#*://}"
  place="${place%%[/?#]*}"
  case "$1" in
  [Ff][Ii][Ll][Ee]:* | /*) place_name='file' ;;
  *) place_name="${1%%://*}://${place##*@}" ;;
  esac
}

# Reads from the first place. Appends the bytes to a file; word, code, wait_s and reason become the verdict.
# Arguments: offset [bytes], length [bytes], file
read_place() {
  local url="${places[0]#* }" kind found
  url_kind "$url"
  kind="$url_kind"
  if [[ "$kind" == pelican ]]; then
    code=0
    ask_director || return 0
    url="${places[0]#* }" kind=http
  fi
  found="$(
    exec 5>&1
    case "${places[0]%% *}" in
    public) shows_credentials=false ;;
    token) trust "$url" ;; # by the director of a federation that is trusted
    esac
    "read_$kind" "$url" "$1" "$2" | head -c "$(($2 + 1))" 2>/dev/null >>"$3" ||
      # Was head killed, but by no limit on the size of files? Then bytes are missing, as if the transfer had broken off.
      ((PIPESTATUS[1] == 0 || PIPESTATUS[1] > 128 && PIPESTATUS[1] != LIMIT_EXCEEDED)) || printf 'full\n' >&5
  )" || true
  [[ $'\n'"$found"$'\n' != *$'\nfull\n'* ]] || node_fault "$3 can't be written: is the disk full?"
  [[ ! "${found%%$'\n'*}" =~ ^([^ ]+)\ ([^ ]+)\ ([^ ]+)\ (.*)$ ]] ||
    word="${BASH_REMATCH[1]}" code="${BASH_REMATCH[2]}" wait_s="${BASH_REMATCH[3]}" reason="${BASH_REMATCH[4]}"
}

# Appends one range to a file. Goes on where a transfer broke off as long as bytes come, and from the next place when one
# fails. Arguments: offset [bytes], length [bytes], file
append_range() {
  local offset="$1" length="$2" file="$3" start got had=0 attempts=0 longest_s=0 word code wait_s reason from url
  size_of "$file"
  start="$size_of"
  while ((had < length)); do
    word="" code="" wait_s="" reason=""
    read_place "$((offset + had))" "$((length - had))" "$file"
    size_of "$file"
    got=$((size_of - start))
    if ((got > length)) && [[ "$word" != never ]]; then
      word=never reason="more than $length bytes came for a range"
    fi
    if [[ "$word" == never ]] && ((got > had)); then # wrong ones
      dd if=/dev/null of="$file" bs=1 seek="$((start + had))" 2>/dev/null || node_fault "$file can't be written"
      got="$had"
    fi
    if ((got > had)); then
      attempts=0 refusals=()
    fi
    had="$got"
    ((had < length)) || break
    url="${places[0]#* }" from=""
    place_name "$url"
    [[ "${#doors[@]} ${places[0]%% *}" == '1 door' ]] || from="$place_name: "
    reason="${reason:-no reason given}"
    leave_place "$word"
    ((wait_s <= longest_s)) || longest_s="$wait_s"
    if ((${#places[@]} > 0)); then
      place_name "${places[0]#* }"
      log "fetch failed (attempt $((attempts + 1)), $had of $length bytes): $from$reason: going on to $place_name"
      learn_from "${code:-0}"
      continue
    fi
    attempts=$((attempts + 1))
    if ! begin_round || ((attempts >= TRIES)); then
      [[ "$word" == never ]] || reason+=" ($attempts attempts, $had of $length bytes at $offset came)"
      not_fetched "$reason" "$url"
    fi
    log "fetch failed (attempt $attempts, $had of $length bytes): $from$reason"
    learn_from "${code:-0}"
    pause "$(backoff "$attempts" "$BACKOFF_MS" "$longest_s")"
    longest_s=0
  done
}

# Arguments: message, URL that failed last (default: the preferred one)
not_fetched() {
  fault=fetch node_fault "not fetched: $1: $(shown_url "${2:-$osgprod_source_url}")"
}

# Fetches the slice, whole and checked. Where wrong bytes come, it is fetched from the next place. Argument: file
fetch_slice() {
  local size damage url from
  begin_round || not_fetched 'no door is known'
  while true; do
    assemble_slice "$1"
    size_of "$1"
    size="$size_of"
    # shellcheck disable=SC2154
    ((size == osgprod_size_bytes)) || not_fetched "the slice has $size bytes instead of $osgprod_size_bytes"
    ! check_slice "$1" "$size" "${osgprod_events:-}" || break
    url="${places[0]#* }"
    leave_place never
    ((${#places[@]} > 0)) || begin_round || not_fetched "$damage" "$url"
    place_name "$url"
    from="$place_name"
    place_name "${places[0]#* }"
    log "fetch failed: $from: $damage: going on to $place_name"
  done
  place_name "${places[0]#* }"
  [[ -z "${OSGPROD_REPORT:-}" ]] || add_to_report "door=$place_name"$'\n'"fetched_bytes=$size" || true
}

# Joins the pieces of the slice. Argument: file
assemble_slice() {
  local file="$1" piece kind words
  { : >"$file"; } 2>/dev/null || node_fault "$file can't be written"
  # shellcheck disable=SC2154  # filled in above by the server, as osgprod_size_bytes is
  for piece in "${osgprod_pieces[@]}"; do
    kind="${piece%% *}" words="${piece#* }"
    case "$kind" in
    range) append_range "${words% *}" "${words#* }" "$file" ;;
    hex) append_hex "$words" "$file" || node_fault "$file can't be written: is the disk full?" ;;
    *) misconfigured "the server gave a piece that this script does not know: $piece" ;;
    esac
  done
}

# Sets doors to the URLs of the file that this node can read, in the server's order. An older server gives one URL, in
# osgprod_source_url. Fails when XRootD's bindings are missing for all of them.
find_doors() {
  local url unknown=""
  local -a urls=("$osgprod_source_url")
  [[ -z "${osgprod_source_urls[*]:-}" ]] || urls=("${osgprod_source_urls[@]}")
  doors=()
  for url in "${urls[@]}"; do
    if ! url_kind "$url"; then
      unknown="the source $(shown_url "$url") has no scheme that this script knows: $URL_SCHEMES"
    elif can_fetch "$url_kind"; then
      doors[${#doors[@]}]="$url"
    else
      unknown=""
    fi
  done
  ((${#doors[@]} == 0)) || return 0
  [[ -z "$unknown" ]] || misconfigured "$unknown"
  return 1
}

# Does this node have a program that reads ranges? Sets xrootd_python. Argument: kind of the URL
can_fetch() {
  [[ "$1" == root ]] || return 0
  for xrootd_python in python3 /usr/bin/python3; do
    ! "$xrootd_python" -c 'from XRootD import client' 2>/dev/null || return 0
  done
  return 1
}

# --- fetch the inputs --------------------------------------------------------------------------------------------

readonly EXIT_BAD_INPUTS=65
# If so many inputs are all bad, the storage or this node may be the cause.
readonly MANY_INPUTS=3
# No page that a server sends in place of a file is so large.
readonly MAX_PAGE_BYTES=65536

bad_inputs=""  # BLOCK1,BLOCK2 of each input that must be made again, joined by ':'
input_fault="" # the fault of an input

# Notes an input that doesn't fit its record, or whose files can't be merged. Arguments: BLOCK1,BLOCK2, its fault
bad_input() {
  log "bad input $1: $2"
  [[ ":$bad_inputs:" == *":$1:"* ]] || bad_inputs+="${bad_inputs:+:}$1"
}

# Ends the script if inputs are bad: the server requeues their slices, and the merge waits for them. Argument: how many
# inputs there are
end_if_bad() {
  [[ -n "$bad_inputs" ]] || return 0
  split : "$bad_inputs"
  ((${#fields[@]} < MANY_INPUTS || ${#fields[@]} < $1)) ||
    node_fault "all $1 inputs are bad: is the storage away? osgprod outputs check --requeue makes them again if they are lost"
  add_to_report "bad_inputs=$bad_inputs" || node_fault "${OSGPROD_REPORT:-osgprod_report.txt} can't be written: is the disk full?"
  log "bad inputs: ${#fields[@]} of $1: $bad_inputs"
  exit "$EXIT_BAD_INPUTS"
}

# Does an error of storage say that the file does not exist? Argument: what storage said
is_not_found() {
  case "${1,,}" in
  *'no credentials were shown to'*) return 1 ;;
  '' | 'status 404 '* | 'status 410 '* | *'[3011]'* | *'no such file'* | *'not found'* | *'does not exist'*) ;;
  *) return 1 ;;
  esac
}

# Compares an input with what storage says of it. Sets input_fault; empty = nothing is wrong, as far as storage says. Sets
# stored_bytes and stored_adler, empty = storage does not say. A file that seems to be gone is looked for several times: an
# overloaded cache answers so for files that exist. Arguments: kind, URL, size [bytes] or -, adler32 or -
look_at_input() {
  local kind="$1" url="$2" bytes="$3" adler="$4" look code
  input_fault="" stored_bytes="" stored_adler=""
  client_url "$url"
  if [[ "$kind" == file && ! -d "$(dirname "$client_url")" ]]; then
    node_fault "not fetched: this node has no folder $(dirname "$client_url")"
  fi
  for ((look = 1; look <= LOOKS; look++)); do
    ((look == 1)) || pause "$(backoff "$((look - 1))" "$BACKOFF_MS")"
    code=0
    storage "stored_$kind" "$url" || code=$?
    stored_bytes="${captured%%$'\n'*}"
    [[ -z "$stored_bytes" ]] || break
  done
  if [[ ! "$stored_bytes" =~ ^[0-9]+$ ]]; then
    stored_bytes=""
    # Without its client, a Pelican object is fetched by curl, and compared then.
    [[ "$kind" != root ]] || ((code != 126 && code != 127)) || no_program xrdfs
    # To a stranger storage may say so of a file that is there.
    if ((code != 0 && code < 126)) && is_not_found "$storage_error" && [[ -z "$(withheld "$url")" ]]; then
      input_fault='is gone'
    fi
    return 0
  fi
  [[ "$captured" != *$'\n'* ]] || stored_adler="${captured#*$'\n'}"
  stored_adler="${stored_adler%%$'\n'*}"
  if [[ "$bytes" != - && "$stored_bytes" != "$bytes" ]]; then
    [[ "$kind" != http ]] || storage confirm_size "$url" "$stored_bytes" ||
      node_fault "not fetched: storage reports $stored_bytes bytes for $(shown_url "$url"), but sends another file: $storage_error"
    input_fault="has $stored_bytes bytes instead of $bytes"
  elif [[ "$adler" != - && -n "$stored_adler" ]] && ! same_adler32 "$adler" "$stored_adler"; then
    if [[ "$kind" == file ]]; then
      input_fault="has the checksum $stored_adler instead of $adler"
    else # some storage writes checksums in another way: the bytes decide
      log "$(shown_url "$url") is said to have the checksum $stored_adler instead of $adler"
      stored_adler=""
    fi
  fi
}

# Is a file of this size behind a URL? A server that answers each request with a page, for a login or since it is being
# repaired, tells the size of the page. Arguments: URL, size [bytes] as HEAD says
confirm_size() {
  local code=0 range
  http_transfer "$1" -r 0-1 --max-time 120 --max-filesize "$MAX_PAGE_BYTES" >/dev/null || code=$?
  find_header content-range "$http_head"
  range="$header"
  case "$http_status" in
  206) [[ "${range##*/}" == "$2" ]] && return 0 ;;
  200) ((code == 63 || $2 == 0 && $(content_length) == 0)) && return 0 ;; # 63: it is larger than a page
  416) (($2 == 0)) && return 0 ;;
  esac
  http_fault >&2
  return 1
}

# Prints the Content-Length of the last answer of storage, or 1.
content_length() {
  find_header content-length "$http_head"
  printf '%s' "${header:-1}"
}

# Fetches an input, and compares it with its record. Wrong bytes are fetched once more: they may have come from a cache.
# Sets input_file, or input_fault. Arguments: kind, URL, size [bytes] or -, adler32 or -, file to fetch it into
fetch_input() {
  local kind="$1" url="$2" bytes="$3" adler="$4" try came
  look_at_input "$kind" "$url" "$bytes" "$adler"
  [[ -z "$input_fault" ]] || return 0
  [[ "$bytes" != - ]] || bytes="$stored_bytes"
  if [[ "$kind" == file ]]; then
    client_url "$url"
    input_file="$client_url" # its checksum was computed just now
    [[ -n "$stored_bytes" ]] || node_fault "not fetched: $input_file can't be read"
    return 0
  fi
  for try in 1 2; do
    input_fault="" input_file="$5"
    fetch_whole "$kind" "$url" "$bytes" "$input_file"
    size_of "$input_file"
    came="$size_of"
    if [[ -n "$bytes" && "$came" != "$bytes" ]]; then
      input_fault="has $came bytes instead of $bytes"
    elif [[ "$adler" != - ]]; then
      came="$(adler32 "$input_file" "$came")" || node_fault "the checksum of $input_file can't be computed: is the disk full?"
      same_adler32 "$adler" "$came" || input_fault="has the checksum $came instead of $adler"
    fi
    [[ -n "$input_fault" ]] || return 0
    log "$(shown_url "$url") $input_fault (attempt $try of 2)"
  done
  # Storage holds what its record says: the bytes went wrong on the way.
  [[ "$adler" == - || -z "$stored_adler" ]] || node_fault "not fetched: wrong bytes came: $(shown_url "$url") $input_fault"
}

# Fetches a whole file. Arguments: kind, URL, size [bytes] or nothing, file
fetch_whole() {
  local kind="$1" url="$2" bytes="$3" file="$4" try code
  { : >"$file"; } 2>/dev/null || node_fault "$file can't be written: is the disk full?"
  osgprod_source_url="$url" # for the messages of append_range
  if [[ -n "$bytes" ]] && can_fetch "$kind"; then
    doors=("$url") given_up=() refusals=()
    begin_round || true
    append_range 0 "$bytes" "$file"
    return 0
  fi
  for ((try = 1; ; try++)); do
    code=0
    storage "whole_$kind" "$url" "$file" || code=$?
    ((code != 0)) || return 0
    ((code != 126 && code != 127)) || no_program "the client for $(shown_url "$url")"
    ((try < TRIES)) || not_fetched "$storage_error ($try attempts)"
    log "fetch failed (attempt $try): $storage_error"
    pause "$(backoff "$try" "$BACKOFF_MS")"
  done
}
whole_http() {
  call_http_body "$1" >"$2"
}
whole_root() {
  client_url "$1"
  client_for "$1" xrdcp --nopbar --force "$client_url" "$2"
}
whole_pelican() {
  may_use_pelican "$1" || return
  pelican object get "$1" "$2"
}
call_http_body() {
  local code=0
  http_transfer "$1" || code=$?
  ((code == 0)) || http_fault >&2
  return "$code"
}

# Fetches all inputs and unpacks each into the folder BLOCK1,BLOCK2. All bad ones are found, so that the server can requeue
# their slices at once. Arguments: folder for these folders, file for the tarball
fetch_inputs() {
  local line url bytes adler block1 block2 kind folder program n=0
  for program in tar gzip; do
    type -P "$program" >/dev/null || no_program "$program"
  done
  # shellcheck disable=SC2154  # filled in by the server
  for line in "${osgprod_inputs[@]}"; do
    n=$((n + 1))
    split ' ' "$line"
    url="${fields[0]:-}" bytes="${fields[1]:-}" adler="${fields[2]:-}" block1="${fields[3]:-}" block2="${fields[4]:-}"
    [[ "${#fields[@]}" == 5 && "$block2" =~ ^[0-9]+$ && "$block1" =~ ^[0-9]+$ ]] || misconfigured "the server gave an input that this script does not know: $line"
    [[ "$url" != - ]] || misconfigured "no URL is known of the output of blocks $block1,$block2: set output_home of the project, or recycle the slice"
    url_kind "$url" || misconfigured "the input $(shown_url "$url") has no scheme that this script knows: $URL_SCHEMES"
    kind="$url_kind"
    input_url "$url"
    url="$input_url"
    log "input $n of ${#osgprod_inputs[@]}: $(shown_url "$url")"
    fetch_input "$kind" "$url" "$bytes" "$adler" "$2"
    folder="$1/$block1,$block2"
    if [[ -n "$input_fault" ]]; then
      bad_input "$block1,$block2" "$(shown_url "$url") $input_fault"
    elif ! mkdir -p "$folder" 2>/dev/null; then
      node_fault "$folder can't be made: is the disk full?"
    else
      unpack_input "$input_file" "$folder" "$2.log" ||
        bad_input "$block1,$block2" "$(shown_url "$url") is not a whole tarball: $(tail -n 1 "$2.log")"
    fi
    rm -f "$2"
  done
  end_if_bad "${#osgprod_inputs[@]}"
}

# Unpacks a tarball. Fails when the tarball is bad; ends the script when this node can't unpack it.
# Arguments: tarball, folder, file for tar's words
unpack_input() {
  local code=0
  tar -xzf "$1" -C "$2" --no-same-owner >/dev/null 2>"$3" || code=$?
  make_readable "$2" # a job that runs as root packs files of any mode
  ((code != 0)) || return 0
  ((code != 126 && code != 127 && code < 129)) || node_fault "tar ended with $code: $(tail -n 1 "$3")"
  check_room "$(tail -n 1 "$3")"
  code=0
  is_sound_tarball "$1" || code=$?
  ((code < 126)) || node_fault "gzip or tar ended with $code"
  ((code != 0)) || node_fault "a whole tarball can't be unpacked here: $(tail -n 1 "$3")"
  return 1
}

# Can a tarball be read to its end, and do all its files belong into its folder? A sound one is read once. Argument: tarball
is_sound_tarball() {
  local -a codes=(0 0 0)
  # Not tar -z: its exit code does not say that somebody has killed its gzip.
  gzip -dc "$1" 2>/dev/null | tar -tf - 2>/dev/null | grep -aE '^/|(^|/)\.\.(/|$)' >/dev/null || codes=("${PIPESTATUS[@]}")
  ((codes[2] > 0)) || return 1
  if ((codes[0] != 0)); then # the tarball is wrong; or tar has ended before
    gzip -t "$1" 2>/dev/null || return
    ((codes[0] == 141)) || return "$EXIT_NO_PROGRAM"
  fi
  ((codes[1] == 0)) || return "${codes[1]}"
  ((codes[2] == 1)) || return "$EXIT_NO_PROGRAM"
}

# Ends the script if the disk is full, which explains a failure. Argument: what failed
check_room() {
  probe_disk .
  [[ -z "$disk_error" ]] || node_fault "the disk is full: ${1:+$1: }$disk_error"
}

# --- merge by kind -----------------------------------------------------------------------------------------------

readonly EXIT_NOT_MERGED=66 EXIT_NO_PROGRAM=127
readonly MAX_HEADER_BYTES=1000000 # of an HDDM file; GlueX's have some 30,000

run="" seqno=""  # digits of names
merged_events="" # of a merged file; empty = they can't be counted
fields=()        # see split

# The result is not what it must be. Argument: message
not_merged() {
  log "$1"
  exit "$EXIT_NOT_MERGED"
}

# A program is missing here. Argument: its name
no_program() {
  log "$1 is not on this node"
  exit "$EXIT_NO_PROGRAM"
}

# Sets fields to the words of the first line of a text. Arguments: characters that divide words, text
split() {
  local IFS="$1"
  set -f
  # shellcheck disable=SC2206  # words
  fields=(${2%%$'\n'*})
  set +f
}

# Prints a file's name without its extension, and without the slice's name in front. Argument: name
stem_of() {
  local stem="${1%.*}"
  if [[ "$stem" =~ ^(.*)\+[0-9]+,[0-9]+(\..*)?$ ]]; then
    stem="${BASH_REMATCH[2]#.}"
    [[ -n "$stem" ]] || stem="${BASH_REMATCH[1]}"
  fi
  stem="${stem//[!A-Za-z0-9._+-]/_}"
  [[ "$stem" != .* && -n "$stem" ]] || stem="_${stem#.}" # no hidden file
  printf '%s' "$stem"
}

# Finds the line of the table for a file. Sets row_kind, row_how, row_merged, row_slices, and row_has_stem: does the name
# of the file make the kind? Argument: name
find_row() {
  local row
  for row in "${merge_kinds[@]}"; do
    split $' \t' "$row"
    # shellcheck disable=SC2053  # a pattern
    [[ "$1" == ${fields[1]} ]] || continue
    row_kind="${fields[0]}" row_how="${fields[2]}" row_merged="${fields[3]}" row_slices="${fields[4]}"
    row_has_stem=false
    [[ "$row_kind" != *'{stem}'* ]] || row_has_stem=true
    ! $row_has_stem || row_kind="${row_kind//\{stem\}/$(stem_of "$1")}"
    return 0
  done
  return 1
}

# Is the table sound? A line that can't be understood is named.
check_table() {
  local row
  ((${#merge_kinds[@]} > 0)) || misconfigured 'merge_kinds has no line'
  for row in "${merge_kinds[@]}"; do
    split $' \t' "$row"
    row_kind="${fields[0]:-}" row_how="${fields[2]:-}" row_merged="${fields[3]:-}" row_slices="${fields[4]:-}"
    [[ "${#fields[@]}" == 5 && "$row_kind" =~ ^[A-Za-z0-9._+{}-]+$ && "$row_how" =~ ^(root|hddm|evio|cat|tar)$ && "$row_merged" != */* ]] &&
      [[ "$row_slices" =~ ^(all|must|some)$ ]] || misconfigured "merge_kinds has a line that is none: ${row:0:100}"
  done
}

# Sets run and seqno to the digits of names; seqno is empty when a whole run is merged.
find_numbers() {
  # shellcheck disable=SC2154  # filled in by the server
  printf -v run '%06d' "$((10#$osgprod_run))"
  seqno=""
  [[ ! "${osgprod_seqno:-}" =~ ^[0-9]+$ ]] || printf -v seqno '%03d' "$((10#$osgprod_seqno))"
}

# Does each merged file have a name that no other merge of the project gives its own? The number of the run must be in its name or
# in that of its folder, and so must the number of the file, unless a whole run is merged.
check_names() {
  local row name
  find_numbers
  for row in "${merge_kinds[@]}"; do
    split $' \t' "$row"
    name="${fields[3]}"
    [[ "$name" == *'{run}'* || "$merged_folder" =~ (^|[^0-9])"$run"([^0-9]|$) ]] ||
      misconfigured "merge_kinds: the name $name lacks {run}: each run would replace the merged file of the one before"
    [[ -z "$seqno" || "$name" == *'{seqno}'* || "$merged_folder" =~ (^|[^0-9])"$seqno"([^0-9]|$) ]] ||
      misconfigured "merge_kinds: the name $name lacks {seqno}: each file would replace the merged file of the one before"
  done
}

# Sorts the files of all slices by kind: KIND.list holds their paths, each ended by a NUL, in the order of slices and names.
# A slice that lacks a kind which it must have is bad. Arguments: folder of the slices' folders, folder for the lists
sort_by_kind() {
  local slices="$1" lists="$2" slice path line kind
  local -a names=()
  local -A how=() merged=() wanted=() has=() count=()
  for line in "${osgprod_inputs[@]}"; do
    split ' ' "$line"
    names[${#names[@]}]="${fields[3]},${fields[4]}"
  done
  for line in "${merge_kinds[@]}"; do
    split $' \t' "$line"
    kind="${fields[0]}"
    [[ "${fields[4]}" != must || "$kind" == *'{stem}'* ]] || wanted["$kind"]=must
  done
  for slice in "${names[@]}"; do
    (cd "$slices" && find "$slice" \( -type f -o -type l \) -print0 | LC_ALL=C sort -z) >"$lists/files" ||
      node_fault "the files of the slice $slice can't be listed: is the disk full?"
    while IFS= read -r -d '' path; do
      find_row "${path##*/}" || continue
      kind="$row_kind"
      [[ ! -L "$slices/$path" || "$row_how" == tar ]] || is_link_inside "$slices" "$path" ||
        not_merged "$path is a symbolic link to no file of its slice"
      if [[ -z "${how["$kind"]:-}" ]]; then
        how["$kind"]="$row_how" merged["$kind"]="$row_merged" wanted["$kind"]="$row_slices"
      elif [[ "${how["$kind"]}" != "$row_how" ]] && $row_has_stem; then
        not_merged "$path is of the kind $kind, as files that are merged by ${how["$kind"]}: give it a line in merge_kinds"
      elif [[ "${how["$kind"]}" != "$row_how" ]]; then
        misconfigured "merge_kinds merges $kind in two ways, $row_how and ${how["$kind"]}"
      fi
      printf '%s\0' "$path" >>"$lists/$kind.list" || node_fault "$lists/$kind.list can't be written: is the disk full?"
      [[ -n "${has["$kind $slice"]:-}" ]] || count["$kind"]=$((${count["$kind"]:-0} + 1))
      has["$kind $slice"]=true
    done <"$lists/files"
  done
  ((${#wanted[@]} > 0)) || not_merged 'the tarballs hold no file that merge_kinds names'
  for kind in "${!wanted[@]}"; do
    if [[ "${wanted["$kind"]}" == must && -z "${count["$kind"]:-}" ]]; then
      not_merged "no slice has a file of the kind $kind"
    elif [[ "${wanted["$kind"]}" != some ]]; then
      for slice in "${names[@]}"; do
        [[ -n "${has["$kind $slice"]:-}" ]] || bad_input "$slice" "it has no file of the kind $kind, as the others have"
      done
    fi
    printf '%s %s\n' "${how["$kind"]}" "$(merged_name "$kind" "${merged["$kind"]}")" >"$lists/$kind.how" ||
      node_fault "$lists/$kind.how can't be written: is the disk full?"
  done
  end_if_bad "${#names[@]}"
}

# Does a symbolic link lead to a file of the same slice? Arguments: folder of the slices' folders, path of the link in it
is_link_inside() {
  local target own
  target="$(readlink -f "$1/$2" 2>/dev/null)" && own="$(readlink -f "$1/${2%%/*}")" && [[ -f "$target" && "$target" == "$own"/* ]]
}

# Prints the name of a merged file. Arguments: kind, name with placeholders
merged_name() {
  local name="${2//\{kind\}/$1}"
  [[ -n "$seqno" ]] || name="${name//_\{seqno\}/}"
  name="${name//\{run\}/$run}"
  printf '%s' "${name//\{seqno\}/$seqno}"
}

# Merges one kind. The current folder is that of the slices' folders. Sets merged_events.
# Arguments: how, output, file with the list of inputs
merge_kind() {
  local path
  local -a inputs=()
  while IFS= read -r -d '' path; do
    inputs[${#inputs[@]}]="$path"
  done <"$3"
  merged_events=""
  "merge_$1" "$2" "${inputs[@]}"
  [[ -s "$2" ]] || not_merged "${2##*/} is empty"
}

merge_cat() {
  local output="$1"
  shift
  cat -- "$@" >"$output" || node_fault "$output can't be written: is the disk full?"
}

merge_tar() {
  local output="$1"
  shift
  printf '%s\0' "$@" | tar -czf "$output" --no-recursion --null -T - || node_fault "$output can't be written: is the disk full?"
}

merge_root() {
  local path status=0
  command -v "${hadd_command[0]}" >/dev/null || no_program "${hadd_command[0]}"
  for path in "${@:2}"; do
    is_whole_root "$path" || bad_input "${path%%/*}" "$path is not a whole ROOT file"
  done
  end_if_bad "${#osgprod_inputs[@]}"
  "${hadd_command[@]}" "$@" >"$1.log" 2>&1 </dev/null || status=$?
  judge_program "${hadd_command[0]}" "$status" "$1.log"
  is_whole_root "$1" || not_merged "${1##*/}: hadd left no whole ROOT file"
  count_events root "$@"
}

merge_hddm() {
  local output="$1" path status=0 packed=false first="" differs=""
  shift
  for path in "$@"; do
    if ! hddm_header "$path"; then
      bad_input "${path%%/*}" "$path is no HDDM file"
      continue
    fi
    [[ "$hddm_header" == "${first:=$hddm_header}" ]] || differs="$path"
    ! is_packed_hddm "$path" || packed=true
  done
  end_if_bad "${#osgprod_inputs[@]}"
  # Before hddmcat blames a file: it is unclear which of them is wrong.
  [[ -z "$differs" ]] || not_merged "$differs has another header than $1: other software made it"
  if $packed; then # of what hddmcat makes of these, readers find the first file's records only
    command -v "$PYTHON" >/dev/null || no_program "$PYTHON"
  else
    command -v "${hddmcat_command[0]}" >/dev/null || no_program "${hddmcat_command[0]}"
    "${hddmcat_command[@]}" "$@" >"$output" 2>"$output.log" </dev/null || status=$?
    judge_program "${hddmcat_command[0]}" "$status" "$output.log"
  fi
  count_events hddm "$output" "$@"
}

hddm_header="" # as the function of this name has set it

# Sets hddm_header to the header of an HDDM file: the text up to the line </HDDM>. Fails when it has none. Argument: file
hddm_header() {
  local line
  hddm_header=""
  while ((${#hddm_header} < MAX_HEADER_BYTES)) && IFS= read -r -n "$MAX_HEADER_BYTES" line; do
    hddm_header+="$line"$'\n'
    [[ "$hddm_header" == '<HDDM'* ]] || return 1
    [[ "$line" != '</HDDM>' ]] || return 0
  done <"$1"
  return 1
}

# Is the HDDM file compressed of which hddm_header has read the header? Then a control record is behind that. Argument: file
is_packed_hddm() {
  local words
  words="$(exec od -A n -v -t x1 -j "${#hddm_header}" -N 8 "$1")" || node_fault "$1 can't be read"
  [[ "$words" == ' 00 00 00 01 00 00 00 08' ]]
}

merge_evio() {
  command -v "$PYTHON" >/dev/null || no_program "$PYTHON"
  count_events evio "$@"
}

# Ends the script if a program failed. Inputs that its errors name are bad. Arguments: program, exit code, its output
judge_program() {
  local line words input path='[0-9]+,[0-9]+/[^ ]*' errors='error|cannot|can.t|not a|zombie|recover|invalid|truncated|corrupt'
  (($2 != 0)) || return 0
  tail -n 20 "$3" >&2 || true
  (($2 != 126 && $2 != 127)) || no_program "$1"
  (($2 < 128)) || node_fault "$1 was killed by signal $(($2 - 128))"
  check_room "$1 ended with $2"
  while IFS= read -r line || [[ -n "$line" ]]; do
    [[ "${line,,}" =~ $errors && "$line" =~ (^|[^0-9,])([0-9]+,[0-9]+)/ ]] || continue
    input="${BASH_REMATCH[2]}" words="$line"
    # Words of a file name are not words of an error: 1,2/error_hist.root
    while [[ "$words" =~ $path ]]; do
      words="${words/"${BASH_REMATCH[0]}"/}"
    done
    [[ ! "${words,,}" =~ $errors ]] || bad_input "$input" "$line"
  done <"$3"
  end_if_bad "${#osgprod_inputs[@]}"
  not_merged "$1 ended with $2: $(tail -n 1 "$3")"
}

# Joins EVIO files, or counts the events of what another program merged. Sets merged_events. Without Python nothing is
# counted. Arguments: evio, hddm or root; output; inputs
count_events() {
  local status=0 said
  if ! command -v "$PYTHON" >/dev/null; then
    log "${2##*/}: nobody has counted the events: $PYTHON is not on this node"
    add_to_report "software=merged without a count of events: $PYTHON is not on the node" || true
    return 0
  fi
  merge_program >"$2.py" 2>/dev/null || node_fault "$2.py can't be written: is the disk full?"
  merged_events="$("$PYTHON" "$2.py" "$@" 2>"$2.log" </dev/null)" || status=$?
  said="$(tail -n 1 "$2.log")"
  [[ -z "$said" ]] || log "$said"
  [[ "$merged_events" =~ ^[0-9]{1,18}$ ]] || merged_events=""
  case "$status" in
  0) return 0 ;;
  "$EXIT_BAD_INPUTS")
    said="${said#bad input }"
    bad_input "${said%%/*}" "${said#*/}"
    end_if_bad "${#osgprod_inputs[@]}"
    ;;
  *)
    check_room "the program for $1 ended with $status"
    ((status < 128)) || node_fault "$PYTHON was killed by signal $((status - 128))"
    ((status != 75)) || node_fault "${2##*/}: $said"
    ;;
  esac
  not_merged "${2##*/} is not what it must be: ${said:-$PYTHON ended with $status}"
}

# Is a file a whole ROOT file? Its header says where it ends. Source: ROOT's TFile: "root", version, begin, end (32 bits, and
# 64 bits from version 1000000 on), big-endian. Argument: file
is_whole_root() {
  local -a byte
  local end=0 n last=15 words
  [[ -f "$1" ]] || return 1
  { words="$(exec od -A n -v -t u1 -N 20 "$1")" && size_of "$1"; } || node_fault "$1 can't be read"
  split ' ' "${words//$'\n'/ }"
  byte=("${fields[@]:-}")
  ((${#byte[@]} == 20)) && [[ "${byte[*]:0:4}" == '114 111 111 116' ]] || return 1
  ((byte[4] * 16777216 + byte[5] * 65536 + byte[6] * 256 + byte[7] < 1000000)) || last=19
  for ((n = 12; n <= last; n++)); do
    end=$((end * 256 + byte[n]))
  done
  ((size_of == end))
}

# --- deliver -----------------------------------------------------------------------------------------------------

readonly EXIT_NOT_DELIVERED=74
readonly MAX_LIST_BYTES=16000 # of outputs_list in the report
readonly MAX_CONFIRM_S=600    # that osgprod_exec.sh may take for a heartbeat, its retries included

outputs_list=""  # JSON objects of the delivered files
merged_folder="" # URL of the folder for merged files; {kind} stands for the kind
attempt_word=""  # see find_attempt_word

# Waits until the server confirms that this attempt has the lease, and ends the script if that lasts: another job may have
# the merge now, and what lies under the names of the merged files may be on record for it. osgprod_exec.sh sends a
# heartbeat when there is the file confirm-lease, removes it then, and keeps the file no-lease while the server does not
# answer; if another job has the merge, it ends this script.
hold_lease() {
  local try own="${OSGPROD_REPORT%/*}" tenths
  for ((try = 1; ; try++)); do
    if [[ -e "$own/sends-heartbeats" ]]; then
      touch "$own/confirm-lease" 2>/dev/null || node_fault "$own/confirm-lease can't be made: is the disk full?"
      for ((tenths = 0; tenths < MAX_CONFIRM_S * 10; tenths++)); do
        [[ -e "$own/confirm-lease" ]] || break
        pause 0.1
      done
      [[ ! -e "$own/confirm-lease" ]] || node_fault "nobody sends heartbeats any more, the lease may have ended: nothing is replaced"
    fi
    [[ -e "$own/no-lease" ]] || return 0
    ((try < TRIES)) || node_fault 'the server does not answer heartbeats, the lease may have ended: nothing is replaced'
    pause "$(backoff "$try" "$BACKOFF_MS")"
  done
}

# Delivers a merged file: sends it under a name that nobody else uses, looks whether it arrived whole, and renames it. A file
# of that name is what an earlier attempt left, which did not count, or a merge that was superseded: it is replaced.
# Arguments: kind of storage, URL, file, size [bytes], adler32, number of the attempt
deliver_merged() {
  local kind="$1" url="$2" file="$3" bytes="$4" adler="$5" part is_moved=true
  [[ -n "$attempt_word" ]] || find_attempt_word
  part="$2.$attempt_word.$6.part"
  storage_error=""
  if [[ "$kind" != pelican ]]; then
    if ! send_whole "$kind" "$file" "$part" "$bytes" "$adler"; then
      withdraw "$kind" "$part"
      return 1
    fi
    if make_way "$kind" "$url"; then
      storage "move_$kind" "$part" "$url" || {
        is_moved=false
        log "$url: renaming failed: $storage_error"
      }
      if has_arrived "$kind" "$url" "$bytes" "$adler" "$LOOKS" && { $is_moved || tells_checksum; }; then
        $is_moved || withdraw "$kind" "$part" # another attempt has delivered the same file meanwhile
        return 0
      fi
    fi
    withdraw "$kind" "$part"
  fi
  # Storage that can't rename, or can't remove: what it then takes under this name, it has replaced.
  make_way "$kind" "$url" || true
  send_whole "$kind" "$file" "$url" "$bytes" "$adler"
}

# Sets attempt_word to a word that only this attempt has, for names. Its token is a secret.
find_attempt_word() {
  attempt_word="$(printf '%s' "${osgprod_token:-$$}" | cksum)" || node_fault "cksum ended with $?"
  attempt_word="${attempt_word// /}"
}

# Removes a file that is not whole; keeps the error that was before. Arguments: kind of storage, URL
withdraw() {
  local error="$storage_error"
  storage "remove_$1" "$2" || true
  storage_error="$error"
}

# Removes the file that has the name of a merged file. Fails when it is still there. Arguments: kind of storage, URL
make_way() {
  local look error=""
  hold_lease
  for ((look = 1; look <= LOOKS; look++)); do
    captured=""
    storage "stored_$1" "$2" || true
    [[ -n "${captured%%$'\n'*}" ]] || return 0
    if ((look == 1)); then
      log "$2 is replaced: an attempt that does not count left it"
      storage "remove_$1" "$2" || error="$storage_error"
    else
      pause "$(backoff "$((look - 1))" "$BACKOFF_MS")"
    fi
  done
  storage_error="the file that has its name can't be removed${error:+: $error}"
  log "$2: $storage_error"
  return 1
}

# Sets merged_folder to the URL of the folder for merged files: the project's merge_output_url, else a folder for this project
# in that of the jobs' tarballs. The names of merged files hold no project: in one folder two projects would replace each
# other's. Nothing = no folder is set.
find_merged_folder() {
  local tarballs="${OSGPROD_OUTPUT_URL:-}" path
  merged_folder="${osgprod_merge_output_url:-}"
  [[ -z "$merged_folder" && -n "$tarballs" ]] || return 0
  [[ -n "${OSGPROD_PROJECT:-}" ]] || misconfigured 'OSGPROD_PROJECT is not set: merged files go to its folder in OSGPROD_OUTPUT_URL'
  merged_folder="${tarballs%/}/$OSGPROD_PROJECT"
  # Below a folder that takes tarballs, the project's may be made, also where that is the first folder of a path (/outputs).
  client_url "$tarballs"
  path="$client_url"
  url_kind "$tarballs" || true
  [[ "$url_kind" != file || ! -d "$path" ]] || mkdir -p "${path%/}/$OSGPROD_PROJECT" 2>/dev/null || true
}

# Delivers a merged file in several attempts, and adds it to outputs_list, which osgprod_exec.sh reports. Arguments: kind, file, its events or nothing
send_merged() {
  local kind="$1" file="$2" events="$3" url store bytes adler try last="$TRIES"
  url="${merged_folder//\{kind\}/$kind}"
  url="${url%/}/${file##*/}"
  storage_kind "$url"
  store="$url_kind"
  size_of "$file"
  bytes="$size_of"
  adler="$(adler32 "$file" "$bytes")" || node_fault "the checksum of $file can't be computed"
  find_token
  if ! is_stored_already "$store" "$url" "$bytes" "$adler"; then
    for ((try = 1; ; try++)); do
      ! deliver_merged "$store" "$url" "$file" "$bytes" "$adler" "$try" || break
      log "not delivered to $url (attempt $try of $last): ${storage_error:-it did not arrive whole}"
      # A refusal is looked at once more: an overloaded server may refuse, a token may be renewed.
      ! is_refusal "$storage_error" || ((last <= try + 1)) || last=$((try + 1))
      if ((try >= last)); then
        log "not delivered: $url: ${storage_error:-it did not arrive whole}"
        exit "$EXIT_NOT_DELIVERED"
      fi
      pause "$(backoff "$try" "$BACKOFF_MS")"
    done
  fi
  log "delivered $url, $bytes bytes${events:+, $events events}"
  json_text "$kind"
  outputs_list+="${outputs_list:+,}{\"kind\":$json_text"
  json_text "$url"
  outputs_list+=",\"url\":$json_text,\"bytes\":$bytes,\"adler32\":\"$adler\""
  outputs_list+="${events:+,\"events\":$events}}"
  ((${#outputs_list} <= MAX_LIST_BYTES)) ||
    misconfigured "the list of merged files has ${#outputs_list} bytes: let merge_kinds have fewer kinds, at most $MAX_LIST_BYTES bytes fit"
  # After each file: if this attempt fails behind it, the server knows which files are in storage.
  add_to_report "outputs_list=[$outputs_list]" || node_fault "${OSGPROD_REPORT:-osgprod_report.txt} can't be written: is the disk full?"
}

json_text="" # as the function of this name has set it

# Sets json_text to a text as JSON has it. Argument: text without control characters
json_text() {
  json_text="${1//\\/\\\\}"
  json_text="\"${json_text//\"/\\\"}\""
}

# Reports to osgprod_exec.sh which inputs to remove when the server has accepted the report.
report_merged() {
  local line url bytes adler
  [[ "${osgprod_merge_cleanup:-keep}" == delete ]] || return 0
  for line in "${osgprod_inputs[@]}"; do
    split ' ' "$line"
    url="${fields[0]:-}" bytes="${fields[1]:-}" adler="${fields[2]:-}"
    # Only the input that was merged: its record must identify it.
    [[ "$bytes" == - || "$adler" == - ]] || add_to_report "merged_input=$url $bytes $adler" || true
  done
}

# --- the program that joins EVIO files and counts events -----------------------------------------------------------

# Prints worker/merge_files.py.
merge_program() {
  cat <<'END_OF_PROGRAM'
#!/usr/bin/env python3
"""What osgprod_merge.bash needs a program for: joins EVIO files, and counts events before and after a merge.

    merge_files.py evio OUTPUT INPUT...    joins EVIO files in this order, and reads OUTPUT again
    merge_files.py hddm OUTPUT INPUT...    joins packed HDDM files, compares what hddmcat wrote of others
    merge_files.py root OUTPUT INPUT...    compares what hadd wrote with its inputs, entries of each tree

Prints the number of events in OUTPUT, or "-" if they can't be counted. Exit codes:
0   done
1   the result is bad, or the inputs don't match
65  one input is bad, and the last line of the log begins with "bad input PATH: "
75  a file can't be read or written

osgprod_merge.bash contains this program. It needs Python 3.6 or later; "root" also needs uproot or ROOT's own bindings.
Source of the formats: docs/evio.md; HDDM: a header of XML, then records, each behind its length (32 bits, big-endian).
"""

import os
import shutil
import struct
import sys
import zlib

try:
    import bz2
except ImportError:  # some builds of Python lack it
    bz2 = None

BAD_RESULT, BAD_INPUT, CANT_READ = 1, 65, 75

MAGIC = 0xC0DA0100
EVIO6 = 0x4556494F
DICTIONARY_BIT, LAST_BIT, FIRST_EVENT_BIT = 1 << 8, 1 << 9, 1 << 14
TRAILER_BIT = 1 << 10  # of a file header of version 6
TRAILER_TYPE = 3
# What precedes the physics of each slice, and so is in each of its outputs: run control, EPICS, begin-of-run record.
REPEATED = set([0x60, 0x70, 0xFF32]) | set(range(0xFFD0, 0xFFD5))


def counted(number, thing):
    """Returns a number with its noun: "1 event", "2 events"."""
    return "%d %s%s" % (number, thing, "" if number == 1 else "s")


class BadInput(Exception):
    """An input isn't whole. Arguments: path, reason."""


class BadResult(Exception):
    """The inputs can't be joined, or the result is not what it must be. Argument: reason."""


class Evio:
    """An EVIO file that is read from its beginning to its end; each structure is checked.

    Attributes: order  "<" or ">";  version  4 or 6;  head  the user header of version 6, else empty
    """

    def __init__(self, path):
        self.path = path
        self.size = os.path.getsize(path)
        self.head = b""
        with open(path, "rb") as file:
            start = file.read(56)
        if len(start) < 32:
            raise BadInput(path, "has %s, and no block header" % counted(len(start), "byte"))
        for self.order in (">", "<"):
            if struct.unpack_from(self.order + "I", start, 28)[0] == MAGIC:
                break
        else:
            raise BadInput(path, "is no EVIO file: no magic word")
        words = struct.unpack_from(self.order + "8I", start)
        self.version = words[5] & 255
        if self.version not in (4, 6):
            raise BadResult("%s has EVIO version %d; 4 and 6 can be joined" % (path, self.version))
        if self.version == 6:
            if len(start) < 56 or words[0] != EVIO6 or words[2] != 14:
                raise BadInput(path, "has no whole file header")
            self.file_header = start
            # Between the two the file may have an index of its records.
            self.user_begin = 56 + words[4]
            self.begin = self.user_begin + (words[6] + 3) // 4 * 4
            if self.begin > self.size:
                raise BadInput(path, "ends in its file header")
            with open(path, "rb") as file:
                file.seek(self.user_begin)
                self.head = file.read(self.begin - self.user_begin)
        else:
            self.begin = 0

    def blocks(self):
        """Yields header words and body of each block or record, those without events and trailers left out."""
        header_words = 8 if self.version == 4 else 14
        offset, is_last = self.begin, False
        with open(self.path, "rb") as file:
            file.seek(offset)
            while offset < self.size:
                header = file.read(4 * header_words)
                if len(header) < 4 * header_words:
                    raise BadInput(self.path, "ends inside the header at byte %d" % offset)
                words = struct.unpack("%s%dI" % (self.order, header_words), header)
                if words[7] != MAGIC or words[2] != header_words or words[5] & 255 != self.version:
                    raise BadInput(self.path, "has no block header at byte %d" % offset)
                if words[0] < header_words or offset + 4 * words[0] > self.size:
                    raise BadInput(self.path, "ends inside the block at byte %d" % offset)
                if is_last and words[3]:
                    raise BadInput(self.path, "has events behind its last block, at byte %d" % offset)
                is_last = self.version == 4 and bool(words[5] & LAST_BIT)
                body = file.read(4 * (words[0] - header_words))
                if len(body) != 4 * (words[0] - header_words):
                    raise BadInput(self.path, "ends inside the block at byte %d" % offset)
                if self.version == 6 and words[5] >> 28 == TRAILER_TYPE:
                    return
                if words[3]:
                    yield offset, words, body
                offset += 4 * words[0]

    def events(self, offset, words, body):
        """Returns the dictionary and the events of a block of version 4."""
        begin, dictionary = 0, b""
        if words[5] & DICTIONARY_BIT:
            begin = self._end_of_bank(offset, body, 0)
            dictionary = body[:begin]
        events = []
        for _ in range(words[3]):
            end = self._end_of_bank(offset, body, begin)
            events.append(body[begin:end])
            begin = end
        if begin != len(body):
            raise BadInput(self.path, "has more events in the block at byte %d than it counts" % offset)
        return dictionary, events

    def _end_of_bank(self, offset, body, begin):
        if begin + 8 > len(body):
            raise BadInput(self.path, "has fewer events in the block at byte %d than it counts" % offset)
        end = begin + 4 * (struct.unpack_from(self.order + "I", body, begin)[0] + 1)
        if end < begin + 8 or end > len(body):
            raise BadInput(self.path, "has no whole event in the block at byte %d" % offset)
        return end

    def tag(self, event):
        """Returns the tag of an event of version 4."""
        return struct.unpack_from(self.order + "I", event, 4)[0] >> 16


def join_evio(output, inputs):
    """Joins EVIO files, and returns the number of events in the result.

    Version 4: empty blocks and trailers are left out. From the second file on, run control and begin-of-run records
    before the first other event are left out, if an earlier file has the same there. Blocks are numbered from 1, and
    a trailer follows. Version 6: the first file's headers, then the records of all files, numbered from 1.
    """
    files = [Evio(path) for path in inputs]
    first = files[0]
    for file in files[1:]:
        for what, one, other in (
            ("version", first.version, file.version),
            ("byte order", first.order, file.order),
            ("user header", first.head, file.head),
        ):
            if one != other:
                raise BadResult("%s and %s have not the same %s" % (first.path, file.path, what))
    with open(output, "wb") as target:
        written = _write_evio6(target, files) if first.version == 6 else _write_evio4(target, files)
        target.flush()
        os.fsync(target.fileno())
    read = _contents(output)
    if read != written:
        raise BadResult(
            "%s: read %s with checksum %08x, wrote %d with %08x"
            % (output, counted(read[0], "event"), read[1], *written)
        )
    return written[0]


def _contents(path):
    """Number and checksum of the events of an EVIO file; of version 6, of its records as they are."""
    count, checksum = 0, 0
    try:
        file = Evio(path)
        for offset, words, body in file.blocks():
            if file.version == 4:
                body = b"".join(file.events(offset, words, body)[1])
            count += words[3]
            checksum = zlib.crc32(body, checksum)
    except BadInput as error:
        raise BadResult("%s %s" % error.args) from error
    return count, checksum


def _write_evio4(target, files):
    number, count_in, count, repeated, checksum = 0, 0, 0, 0, 0
    dictionary, known = b"", set()
    for n, file in enumerate(files):
        is_head = True
        for offset, words, body in file.blocks():
            own_dictionary, events = file.events(offset, words, body)
            count_in += len(events)
            info = words[5] & ~(LAST_BIT | DICTIONARY_BIT)
            if own_dictionary and not dictionary and not number:
                dictionary = own_dictionary
                info |= DICTIONARY_BIT
            elif own_dictionary and own_dictionary != dictionary:
                raise BadResult("%s has another dictionary than %s" % (file.path, files[0].path))
            else:
                own_dictionary = b""
            kept = []
            for event in events:
                is_head = is_head and file.tag(event) in REPEATED
                if is_head and n and event in known:
                    repeated += 1
                    continue
                if is_head:
                    known.add(event)
                kept.append(event)
            if not kept:
                continue
            number += 1
            body = b"".join(kept)
            if number > 1:
                info &= ~FIRST_EVENT_BIT
            length = 8 + (len(own_dictionary) + len(body)) // 4
            target.write(struct.pack(file.order + "8I", length, number, 8, len(kept), 0, info, 0, MAGIC))
            target.write(own_dictionary + body)
            count += len(kept)
            checksum = zlib.crc32(body, checksum)
    target.write(struct.pack(files[0].order + "8I", 8, number + 1, 8, 0, 0, LAST_BIT | 4, 0, MAGIC))
    if count + repeated != count_in:
        raise BadResult(
            "%s came in, %d went out, %d repeated ones were left out"
            % (counted(count_in, "event"), count, repeated)
        )
    if repeated:
        sys.stderr.write("left out: %s of run control\n" % counted(repeated, "repeated event"))
    return count, checksum


def _write_evio6(target, files):
    number, count, checksum = 0, 0, 0
    header = list(struct.unpack(files[0].order + "14I", files[0].file_header))
    # No index, no trailer: readers need neither, and the first file's would be wrong.
    header[3] = header[4] = header[10] = header[11] = 0
    header[5] &= ~TRAILER_BIT
    target.write(struct.pack(files[0].order + "14I", *header) + files[0].head)
    for file in files:
        for _, words, body in file.blocks():
            number += 1
            words = (words[0], number, *words[2:5], words[5] & ~LAST_BIT, *words[6:])
            target.write(struct.pack(file.order + "14I", *words) + body)
            count += words[3]
            checksum = zlib.crc32(body, checksum)
    return count, checksum


HDDM_PACKED = {0x110: zlib.decompressobj}  # by what a file says behind its header
if bz2 is not None:
    HDDM_PACKED[0x120] = bz2.BZ2Decompressor


def hddm_layout(path):
    """Returns header, control record and number of records of an HDDM file.

    A control record says how the records behind it are packed: in blocks of zlib or bzip2, each behind its length. It
    is empty when they are not packed. The number is None when they are packed in another way.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        header = file.readline(1 << 20)
        if not header.startswith(b"<HDDM"):
            raise BadInput(path, "is no HDDM file")
        while not header.endswith(b"</HDDM>\n"):
            line = file.readline(1 << 20)
            if not line:
                raise BadInput(path, "ends in its header")
            header += line
        offset, control = len(header), file.read(16)
        if control[:8] == b"\0\0\0\1\0\0\0\x08" and len(control) == 16:
            unpack = HDDM_PACKED.get(struct.unpack(">Q", control[8:])[0])
            if unpack is None:
                return header, control, None
            blocks = hddm_blocks(file, path, offset + 16, size)
            return header, control, packed_records(blocks, path, unpack)
        return header, b"", sum(1 for _ in hddm_blocks(file, path, offset, size, False))


def hddm_blocks(file, path, offset, size, is_read=True):
    """Yields the data after each length of a file, from an offset on; None each if is_read is false."""
    while offset < size:
        file.seek(offset)
        head = file.read(4)
        length = struct.unpack(">I", head)[0] if len(head) == 4 else 0
        if len(head) < 4 or offset + 4 + length > size:
            raise BadInput(path, "ends inside the record at byte %d" % offset)
        yield file.read(length) if is_read else None
        offset += 4 + length


def packed_records(blocks, path, unpack):
    """Returns the number of records in packed blocks."""
    count, left, head, stream = 0, 0, b"", None
    for block in blocks:
        if stream is None or stream.eof:
            stream = unpack()
        try:
            data = stream.decompress(block)
        except (zlib.error, OSError, EOFError) as error:
            raise BadInput(
                path, "can't be decompressed behind %s: %s" % (counted(count, "record"), error)
            ) from error
        at = 0
        while at < len(data):
            if left > 0:
                step = min(left, len(data) - at)
                left -= step
            else:
                step = 4 - len(head)
                head += data[at : at + step]
                if len(head) == 4:
                    left, head = struct.unpack(">I", head)[0], b""
                    count += 1
            at += step
    if left or head or (stream is not None and not stream.eof):
        raise BadInput(path, "ends inside record %d" % count)
    return count


def merge_hddm(output, inputs):
    """Joins packed HDDM files, or compares what hddmcat wrote of others with its inputs. Returns the number of records.

    hddmcat writes the control record of each file, behind which readers find nothing: here one of them stays.
    """
    layouts = [(path, *hddm_layout(path)) for path in inputs]
    first_header = layouts[0][1]
    # A slice without records may have left a header only, and no control record.
    packing = next((control for _, _, control, _ in layouts if control), b"")
    for path, header, _, _ in layouts:
        if header != first_header:  # it is unclear which of them is wrong
            raise BadResult("%s has another header than %s" % (path, inputs[0]))
    if packing:
        for path, _, control, records in layouts:
            if control != packing and (control or records):
                raise BadResult("%s is packed in another way than the others" % path)
        with open(output, "wb") as joined:
            joined.write(first_header + packing)
            for path, header, control, _ in layouts:
                with open(path, "rb") as file:
                    file.seek(len(header) + len(control))
                    shutil.copyfileobj(file, joined, 1 << 20)
    counts = [records for _, _, _, records in layouts]
    count = None if None in counts else sum(counts)
    try:
        _, _, found = hddm_layout(output)
    except BadInput as error:
        raise BadResult("%s %s" % error.args) from error
    if found != count:
        raise BadResult("%s has %s records, its inputs have %s" % (output, found, count))
    if count is None:
        sys.stderr.write("%s: records not counted, they are packed in an unknown way\n" % output)
    return count


def check_root(output, inputs):
    """Compares a merged ROOT file with its inputs: the entries of each tree, and that no other object is missing.

    Returns the entries of its longest tree; None without a tree, or without a module that reads ROOT files.
    """
    try:
        contents = _contents_by_uproot
        __import__("uproot")
    except ImportError:
        try:
            contents = _contents_by_root
            __import__("ROOT")
        except ImportError:
            sys.stderr.write("%s: entries not counted, Python has neither uproot nor ROOT here\n" % output)
            return None
    expected = {}
    for path in inputs:
        try:
            found = contents(path)
        except MemoryError:
            raise
        except Exception as error:
            raise BadInput(path, "can't be read: %s" % " ".join(str(error).split())[:100]) from error
        for name, entries in found.items():
            expected[name] = None if entries is None else entries + (expected.get(name) or 0)
    try:
        found = contents(output)
    except MemoryError:
        raise
    except Exception as error:
        raise BadResult("%s can't be read: %s" % (output, " ".join(str(error).split())[:100])) from error
    for name in sorted(expected):
        if name not in found:
            raise BadResult("%s lacks %s, which its inputs have" % (output, name))
        if found[name] != expected[name]:
            raise BadResult(
                "%s has %s entries in %s, its inputs have %s" % (output, found[name], name, expected[name])
            )
    return max([entries for entries in found.values() if entries is not None] or [None])


def _contents_by_uproot(path):
    import uproot

    with uproot.open(path) as file:
        contents = {}
        for name, kind in file.classnames(cycle=False).items():
            is_tree = kind in ("TTree", "TNtuple", "TNtupleD", "ROOT::RNTuple")
            contents[name] = file[name].num_entries if is_tree else None
        return contents


def _contents_by_root(path):
    import ROOT

    contents = {}

    def walk(folder, prefix):
        for key in folder.GetListOfKeys():
            name, item = prefix + key.GetName(), key.ReadObj()
            contents[name] = int(item.GetEntries()) if item.InheritsFrom("TTree") else None
            if item.InheritsFrom("TDirectory"):
                walk(item, name + "/")

    file = ROOT.TFile.Open(path)
    if not file or file.IsZombie() or file.TestBit(ROOT.TFile.kRecovered):
        raise IOError("it is not whole")
    walk(file, "")
    file.Close()
    return contents


def main(arguments):
    """Returns the exit code. Arguments: what to do, output, inputs."""
    how, output, inputs = arguments[0], arguments[1], arguments[2:]
    try:
        count = {"evio": join_evio, "hddm": merge_hddm, "root": check_root}[how](output, inputs)
    except BadInput as error:
        sys.stderr.write("bad input %s: %s\n" % error.args)
        return BAD_INPUT
    except BadResult as error:
        sys.stderr.write("%s\n" % error)
        return BAD_RESULT
    except (IOError, OSError) as error:
        sys.stderr.write("%s\n" % error)
        return CANT_READ
    except MemoryError:
        sys.stderr.write("%s: no memory is left\n" % output)
        return CANT_READ
    print("-" if count is None else count)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
END_OF_PROGRAM
}

# --- the merge ---------------------------------------------------------------------------------------------------

main() {
  local area="$PWD/osgprod_merge" list kind how name events count=0 report="${OSGPROD_REPORT:-}"
  log_name=osgprod_merge
  OSGPROD_REPORT="${OSGPROD_REPORT:-osgprod_report.txt}"
  [[ "$OSGPROD_REPORT" == /* ]] || OSGPROD_REPORT="$PWD/$OSGPROD_REPORT"
  number_setting OSGPROD_TRIES 8 1 1000 TRIES || misconfigured "$setting_error"
  number_setting OSGPROD_BACKOFF_MS 1000 1 600000 BACKOFF_MS || misconfigured "$setting_error"
  if [[ -z "${osgprod_inputs[*]:-}" || ! "${osgprod_run:-}" =~ ^[0-9]+$ ]]; then
    [[ -z "$report" ]] || misconfigured 'no merge is filled in: the project'\''s copy of osgprod_merge.bash lacks a line like #osgprod_run='
    log 'no merge is filled in: fetch this script from the server'
    exit "$EXIT_NOT_FILLED"
  fi
  check_table
  find_merged_folder
  trust_only "$merged_folder"
  [[ -n "$merged_folder" ]] || misconfigured 'no folder for merged files is set: osgprod project set PROJECT merge_output_url=...'
  storage_kind "$merged_folder" ||
    misconfigured "merge_output_url $(shown_url "$merged_folder") is not a folder, or contains a query or a password; schemes: $URL_SCHEMES"
  check_names
  trap 'remove_tree "$PWD/osgprod_merge"' EXIT # neither inputs nor delivered files are outputs of this job
  remove_tree "$area"
  mkdir -p "$area/slices" "$area/kinds" "$area/merged" 2>/dev/null || node_fault "$area can't be made: is the disk full?"
  fetch_inputs "$area/slices" "$area/input.tar.gz"
  sort_by_kind "$area/slices" "$area/kinds"
  for list in "$area/kinds"/*.list; do
    kind="${list##*/}"
    kind="${kind%.list}"
    IFS=' ' read -r how name <"${list%.list}.how"
    [[ ! -e "$area/merged/$name" ]] || misconfigured "merge_kinds gives the name $name to two kinds"
    log "$kind: $name"
    (
      cd "$area/slices" || exit
      trap - EXIT
      merge_kind "$how" "$area/merged/$name" "$list"
      { printf '%s' "$merged_events" >"${list%.list}.events"; } 2>/dev/null || node_fault "${list%.list}.events can't be written: is the disk full?"
    )
  done
  check_room 'the merged files may be cut short'
  # Nothing is delivered before all is merged.
  for list in "$area/kinds"/*.list; do
    kind="${list##*/}"
    kind="${kind%.list}"
    IFS=' ' read -r how name <"${list%.list}.how"
    events=""
    IFS= read -r events <"${list%.list}.events" || true # it has no line end
    send_merged "$kind" "$area/merged/$name" "$events"
    rm -f "$area/merged/$name"
    count=$((count + 1))
  done
  report_merged
  log "slices merged: ${#osgprod_inputs[@]}, files delivered: $count"
}

# Read as one command, so that nothing more is read when this script comes from standard input.
if [[ "${BASH_SOURCE[0]:-$0}" == "$0" ]]; then
  main "$@"
  exit
fi
