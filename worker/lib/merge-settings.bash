# shellcheck shell=bash
# --- the kinds -----------------------------------------------------------------------------------------------------

# What becomes of the files in the slices' tarballs. The first line whose pattern fits a file's name counts for it.
#   kind    a word, for {kind} in URLs; {stem} = the file's name without its extension and without the slice's name
#   files   pattern of names, as bash has them
#   how     root (hadd), hddm (hddmcat), evio (joined by this script), cat (one behind the other), tar (a tarball with a
#           folder BLOCK1,BLOCK2 for each slice)
#   merged  name of the merged file; {run} and {seqno} have 6 and 3 digits, and _{seqno} is left out for a whole run. Both must
#           be there, unless merge_output_url has them
#   slices  all = when one slice has it, each must; must = each slice must have it; some = slices may lack it
merge_kinds=(
  # kind             files                   how   merged                            slices
  'BCAL-LED          *.BCAL-LED.evio         evio  {kind}_{run}_{seqno}.evio         all'
  'CCAL-LED          *.CCAL-LED.evio         evio  {kind}_{run}_{seqno}.evio         all'
  'DIRC-LED          *.DIRC-LED.evio         evio  {kind}_{run}_{seqno}.evio         all'
  'FCAL-LED          *.FCAL-LED.evio         evio  {kind}_{run}_{seqno}.evio         all'
  'random            *.random.evio           evio  {kind}_{run}_{seqno}.evio         all'
  'ps                *.ps.evio               evio  {kind}_{run}_{seqno}.evio         all'
  'omega             *.omega.evio            evio  {kind}_{run}_{seqno}.evio         some'
  'sync              *.sync.evio             evio  {kind}_{run}_{seqno}.evio         some'
  '{stem}            *.evio                  evio  {kind}_{run}_{seqno}.evio         some'
  'dana_rest         dana_rest.hddm          hddm  {kind}_{run}_{seqno}.hddm         all'
  'converted_random  converted_random.hddm   hddm  {kind}_{run}_{seqno}.hddm         some'
  '{stem}            *.hddm                  hddm  {kind}_{run}_{seqno}.hddm         some'
  'hd_root           hd_root.root            root  {kind}_{run}_{seqno}.root         all'
  '{stem}            *.root                  root  {kind}_{run}_{seqno}.root         some'
  'job_info          *                       tar   {kind}_{run}_{seqno}.tgz          some'
)
PYTHON="${OSGPROD_PYTHON:-python3}"
set -f # no patterns
# shellcheck disable=SC2206  # words
hadd_command=(${OSGPROD_HADD:-hadd -f -v 1}) hddmcat_command=(${OSGPROD_HDDMCAT:-hddmcat})
set +f
