#!/usr/bin/env bash
#
# osgprod_work.bash: fetches one slice of a raw data file, reconstructs it, and leaves the outputs in the current folder.
# The server fills in the lines below for the job that asks. Copy this file to DOCUMENT_ROOT/PROJECT/ and change its
# settings. It also runs by hand on a whole file:
#     bash osgprod_work.bash hd_rawdata_001234_000.evio
# Made of: worker/lib/work-head.bash worker/lib/shell.bash worker/lib/work-settings.bash worker/lib/log.bash worker/lib/settings.bash worker/lib/backoff.bash worker/lib/url.bash worker/lib/token.bash worker/lib/http.bash worker/lib/pelican.bash worker/lib/disk.bash worker/lib/work-fetch.bash worker/lib/work-check.bash worker/lib/work-main.bash
#
# ncpus:
# cluster:
# process:
# nstarts:
# project:
# source:
# started:
#
# Environment (docs/workscripts.md tells more):
#     OSGPROD_RECON        the reconstruction command, words separated by spaces [see "settings"]
#     OSGPROD_REPORT       file for what the exit report should tell [osgprod_report.txt]
#     OSGPROD_TRIES        how many attempts in a row may bring no byte of a range, 1 to 1000 [8]
#     OSGPROD_BACKOFF_MS   pause after the first of these, doubled each time up to 32 fold, 1 to 600000 [ms; 1000]
#     OSGPROD_TOKEN_HOSTS  hosts that may see the credentials, beside those of the source's URLs, OSGPROD_URL and
#                          OSGPROD_OUTPUT_URL: host or host:port, separated by spaces [none]
#     BEARER_TOKEN, BEARER_TOKEN_FILE, X509_USER_PROXY, X509_CERT_DIR  credentials, and authorities to trust
# Exit codes: 75 = this node can't do it (the slice was not fetched whole, or the disk is full); 40 = a setting or the
# source's URL is wrong; 64 = no slice is filled in (by hand; 40 in a job); every other code is that of the reconstruction (128 + n = signal n).

#input_eviofile_list="root://xrootd.server.dns/path/to/file.evio ..."
#output_filename="file.evio"
#osgprod_ncpus=cores that the job has
#osgprod_token=of this attempt, for heartbeats and the report
#osgprod_source_url=of the whole file
#osgprod_source_urls=all URLs of it, the preferred one first
#osgprod_size_bytes=of the slice as a separate file
#osgprod_events=that the slice holds
#osgprod_pieces=byte ranges of the file, and literal bytes, whose concatenation is the slice

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

# --- settings --------------------------------------------------------------------------------------------------

# A server before 0.10 fills in the comment "# ncpus:" only. When this script comes from standard input, it has no file
# to read the comment from.
NTHREADS="${osgprod_ncpus:-$(sed -n '/^# ncpus: *[0-9]/{s/^# ncpus: *\([0-9]*\).*/\1/p;q;}' "${BASH_SOURCE[0]:-/dev/null}" 2>/dev/null || true)}"
export NTHREADS="${NTHREADS:-1}"
# Gets the slice's file as its last argument. A program that writes how many events it read into the file
# events_read lets the server check that none was skipped.
set -f # no patterns
# shellcheck disable=SC2206  # words
reconstruction=(${OSGPROD_RECON:-hd_root -PJANA:BATCH_MODE=1 -PNTHREADS=$NTHREADS -PTHREAD_TIMEOUT_FIRST_EVENT=3600 -PTHREAD_TIMEOUT=600 -PPLUGINS=danarest})
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

# --- check the slice ---------------------------------------------------------------------------------------------

# Walks the block headers of the slice: a cache may send zeros, or bytes from elsewhere, of the right length. The server
# saw these headers whole when it indexed the file, so a fault in them now arose on the way. About 1 ms a
# block. Source: EVIO 4 block header, 8 words: length [words], number, 8, events, -, version (low 8 bits), -, magic. A record
# header of EVIO 6 has 14 words, the first 8 alike. A file header precedes the records: "EVIO", -, 14, records,
# bytes of an index, version, bytes of a user header, magic.
# Fails when the bytes are wrong, and sets damage to the reason.
# Arguments: file, its size [bytes], events that it must hold (or nothing)
check_slice() {
  local file="$1" size="$2" expected="$3" offset=0 events=0 version=4 words=8 length n word found
  local -a header
  while ((offset < size)); do
    found="$(header_words "$file" "$offset")" || node_fault "$file can't be read"
    # shellcheck disable=SC2206  # words
    header=($found)
    case "${header[7]:-}" in
    c0da0100) ;;
    0001dac0)
      for n in 0 2 3 4 5 6; do
        word="${header[n]}"
        header[n]="${word:6:2}${word:4:2}${word:2:2}${word:0:2}"
      done
      ;;
    *) damaged "$offset" || return 1 ;;
    esac
    length=$((4 * 16#${header[0]}))
    if ((offset == 0 && (16#${header[5]} & 255) == 6 && 16#${header[0]} == 16#4556494f)); then
      version=6 words=14
      length=$((56 + (16#${header[6]} + 3) / 4 * 4))
      ((16#${header[3]} == 0 && 16#${header[4]} == 0)) || damaged 0 || return 1
    fi
    ((16#${header[2]} == words && (16#${header[5]} & 255) == version)) || damaged "$offset" || return 1
    ((length >= 4 * words && offset + length <= size)) || damaged "$offset" || return 1
    events=$((events + 16#${header[3]}))
    offset=$((offset + length))
  done
  [[ "$expected" =~ ^[0-9]+$ ]] && ((events != expected)) || return 0
  damage="wrong bytes came: their block headers count $events events instead of $expected"
  return 1
}

# Sets damage, and fails. Argument: offset in the slice [bytes]
damaged() {
  damage="wrong bytes came: no block header at byte $1 of the slice"
  return 1
}

# Becomes a program that prints 8 words in the byte order of this machine: a file of the other order shows its magic reversed.
# Arguments: file, offset [bytes]
header_words() {
  exec od -A n -v -t x4 -j "$2" -N 32 "$1"
}

# --- the work ----------------------------------------------------------------------------------------------------

# After a reconstruction: a full disk explains a failure, and many programs succeed although their last writes failed.
# Argument: exit code of the reconstruction
check_disk() {
  probe_disk .
  [[ -z "$disk_error" ]] || node_fault "the disk is full: outputs may be cut short, the reconstruction ended with $1: $disk_error"
  (($1 != 0)) || return 0
  probe_disk "${TMPDIR:-/tmp}"
  case "$disk_error" in
  *'No space'* | *[Qq]uota*) node_fault "the disk of ${TMPDIR:-/tmp} is full, the reconstruction ended with $1: $disk_error" ;;
  esac
}

# Tells the exit report how many events the reconstruction read, when it left that in the file events_read.
report_events() {
  local events=""
  [[ -s events_read ]] || return 0
  IFS=$' \t\r' read -r events <events_read || true
  if [[ ! "$events" =~ ^[0-9]{1,18}$ ]]; then
    log "events_read holds no number: ${events:0:40}"
  else
    add_to_report "events=$events" || node_fault "${OSGPROD_REPORT:-osgprod_report.txt} can't be written: is the disk full?"
  fi
}

# Arguments: whole files to process when no slice is filled in
main() {
  local status=0
  local -a inputs
  log_name=osgprod_work
  number_setting OSGPROD_TRIES 8 1 1000 TRIES || misconfigured "$setting_error"
  number_setting OSGPROD_BACKOFF_MS 1000 1 600000 BACKOFF_MS || misconfigured "$setting_error"
  slice="${output_filename:-}"
  if [[ -n "${osgprod_source_url:-}" ]] && find_doors; then
    trust_only "${doors[@]}"
    trap 'rm -f "$slice"' EXIT # whole or not, it is not an output
    fetch_slice "$slice"
    inputs=("$slice")
  elif [[ -n "${input_eviofile_list:-}" ]]; then
    log 'no XRootD bindings for Python: the reconstruction must understand names like file.evio+1,2'
    set -f # no patterns
    # shellcheck disable=SC2206  # words
    inputs=($input_eviofile_list)
    set +f
  elif (($# > 0)); then
    inputs=("$@")
  elif [[ -n "${osgprod_source_url:-}" ]]; then
    node_fault 'this node has no XRootD bindings for Python, and the work script lacks the line #input_eviofile_list='
  else
    [[ -z "${OSGPROD_REPORT:-}" ]] || misconfigured 'no slice is filled in: the work script lacks lines like #osgprod_source_url='
    log 'no slice is filled in: fetch this script from the server, or name a file'
    exit "$EXIT_NOT_FILLED"
  fi
  # Not the standard input of this script: this script may come from there.
  "${reconstruction[@]}" "${inputs[@]}" </dev/null || status=$?
  check_disk "$status"
  report_events
  return "$status"
}

# Read as one command, so that nothing more is read when this script comes from standard input.
if [[ "${BASH_SOURCE[0]:-$0}" == "$0" ]]; then
  main "$@"
  exit
fi
