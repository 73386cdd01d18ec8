# shellcheck shell=bash
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
