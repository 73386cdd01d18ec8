-- Where raw data can be read: a prefix a file, the door that a job used, and what is on tape only.
-- depends: 0009-file-states

SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.rawdata
    ADD COLUMN prefix      text,
    ADD COLUMN locality    text CHECK (locality IN ('online', 'nearline', 'gone')),
    ADD COLUMN locality_at timestamptz,
    ADD CONSTRAINT rawdata_locality_has_a_time CHECK ((locality IS NULL) = (locality_at IS NULL));
ALTER TABLE osgprod_data.reports ADD COLUMN door text;
ALTER TABLE osgprod_data.projects ADD COLUMN skip_nearline boolean NOT NULL DEFAULT false;

COMMENT ON COLUMN osgprod_data.rawdata.prefix         IS 'prefixes of this file in the place of the project''s; NULL = the project''s';
COMMENT ON COLUMN osgprod_data.rawdata.locality       IS 'what storage said last: online, nearline (on tape only), or gone; NULL = it was not asked, or could not tell';
COMMENT ON COLUMN osgprod_data.rawdata.locality_at    IS 'when storage said so';
COMMENT ON COLUMN osgprod_data.reports.door           IS 'scheme and host that the slice was read from, as the job reports';
COMMENT ON COLUMN osgprod_data.projects.skip_nearline IS 'assign nothing of files that are on tape only, until they are online?';
COMMENT ON COLUMN osgprod_data.projects.xrootd_prefix IS 'stands before the path of a file in its URL; of several, separated by spaces, a job tries the next one when one fails; site=prefix is for jobs of that site';

RESET ROLE;
