# shellcheck shell=bash
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
