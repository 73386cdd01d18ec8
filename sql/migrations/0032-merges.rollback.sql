SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.projects DROP COLUMN merge_s;
COMMENT ON TABLE osgprod_data.outputs IS 'files that an accepted attempt listed as delivered; append-only. An attempt that lists none has one output, in its row of reports';

RESET ROLE;
