# shellcheck shell=bash
# --- the program that joins EVIO files and counts events -----------------------------------------------------------

# Prints worker/merge_files.py.
merge_program() {
  cat <<'END_OF_PROGRAM'
# include worker/merge_files.py
END_OF_PROGRAM
}
