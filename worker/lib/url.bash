# shellcheck shell=bash
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
