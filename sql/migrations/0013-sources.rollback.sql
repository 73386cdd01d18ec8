SET LOCAL ROLE osgprod_owner;

COMMENT ON COLUMN osgprod_data.projects.xrootd_prefix IS 'stands before the path of a file in its URL';
ALTER TABLE osgprod_data.projects DROP COLUMN skip_nearline;
ALTER TABLE osgprod_data.reports DROP COLUMN door;
ALTER TABLE osgprod_data.rawdata DROP COLUMN prefix, DROP COLUMN locality, DROP COLUMN locality_at;

RESET ROLE;
