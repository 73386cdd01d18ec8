SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.merges DROP CONSTRAINT merges_ready_have_inputs;
COMMENT ON COLUMN osgprod_data.merges.is_ready IS 'true = it may be assigned. false = it is in backoff, or failed. NULL = in another state';
COMMENT ON COLUMN osgprod_data.merges.not_before IS 'when the backoff of a ready one ends, or ended';
COMMENT ON COLUMN osgprod_data.merges.inputs IS 'slices that its last attempt was given; NULL = it had no attempt';
COMMENT ON COLUMN osgprod_data.merges.missing IS 'quarantined blocks that it was made without: block1,block2 of each, joined by '':''; NULL = none';

RESET ROLE;
