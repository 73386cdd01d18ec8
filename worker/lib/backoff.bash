# shellcheck shell=bash
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
