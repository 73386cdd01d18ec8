# shellcheck shell=bash
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
