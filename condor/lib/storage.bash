# shellcheck shell=bash
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
