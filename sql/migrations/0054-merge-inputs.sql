-- A merge has its inputs before a job may have it: the tick that makes it ready notes them. The next tick does so for those that
-- were ready before. Inputs of an attempt from before the merge was taken back are no longer its inputs.
-- depends: 0053-functions

SET LOCAL ROLE osgprod_owner;

UPDATE osgprod_data.merges m
   SET is_ready = CASE WHEN m.is_ready THEN false END, not_before = CASE WHEN m.is_ready THEN coalesce(m.not_before, now()) END,
       inputs = CASE WHEN a.opened_at = m.opened_at THEN m.inputs END,
       missing = CASE WHEN a.opened_at = m.opened_at THEN m.missing END
  FROM osgprod_data.merges o
  LEFT JOIN osgprod_data.attempts a ON a.project_id = o.project_id AND a.cluster = o.cluster AND a.process = o.process
                                   AND a.nstart = o.nstart
 WHERE m.merge_id = o.merge_id AND (m.is_ready OR m.state = 'waiting');
ALTER TABLE osgprod_data.merges ADD CONSTRAINT merges_ready_have_inputs CHECK (is_ready IS NOT TRUE OR inputs IS NOT NULL);

COMMENT ON COLUMN osgprod_data.merges.is_ready IS 'true = it may be assigned. false = it is planned, in backoff, or failed. NULL = in another state';
COMMENT ON COLUMN osgprod_data.merges.not_before IS 'when a ready one was planned, or when its backoff ends, or ended';
COMMENT ON COLUMN osgprod_data.merges.inputs IS 'slices that it is made of, as the tick that made it ready found them; NULL = no tick has, or it was taken back';
COMMENT ON COLUMN osgprod_data.merges.missing IS 'quarantined blocks that it is made without: block1,block2 of each, joined by '':''; NULL = none';

RESET ROLE;
