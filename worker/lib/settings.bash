# shellcheck shell=bash
# --- settings ----------------------------------------------------------------------------------------------------

number=""        # as number_setting has found it
setting_error="" # what number_setting says of a setting that is wrong

# Sets number to the one that an environment variable holds, or to its default when the variable is unset or empty. Fails, and
# sets setting_error to the rule, when the variable holds anything but a whole number in the range.
# Arguments: name of the variable, default, least, greatest (inclusive, at most 9 digits)
number_setting() {
  local text="${!1:-$2}"
  if [[ ! "$text" =~ ^[0-9]{1,9}$ ]] || ((10#$text < $3 || 10#$text > $4)); then
    setting_error="$1 is '${text:0:40}': it must be a whole number from $3 to $4, without a unit"
    return 1
  fi
  number="$((10#$text))"
}
