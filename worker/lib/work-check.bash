# shellcheck shell=bash
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
