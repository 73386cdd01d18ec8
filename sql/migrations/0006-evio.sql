-- Raw data files: empty blocks are part of no slice, and what precedes a slice may come from any block.
-- depends: 0003-once-and-due

SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.rawdata
    DROP CONSTRAINT rawdata_first_block_check,
    ADD CONSTRAINT rawdata_first_block_check CHECK (first_block >= 0),
    DROP CONSTRAINT rawdata_trailer_check,
    ADD CONSTRAINT rawdata_trailer_check CHECK (length(trailer) IN (0, 32)),
    ADD COLUMN evio_version smallint NOT NULL DEFAULT 4 CHECK (evio_version IN (4, 6)),
    ADD COLUMN gaps int8range[],
    ADD COLUMN has_bor boolean;

ALTER TABLE osgprod_data.projects ADD COLUMN demand_bor boolean NOT NULL DEFAULT false;

COMMENT ON COLUMN osgprod_data.rawdata.nblocks     IS 'blocks that hold events; up to release 0.9.0 empty ones inside counted, too';
COMMENT ON COLUMN osgprod_data.rawdata.first_block IS 'first block that is work: those before it are part of what every slice begins with';
COMMENT ON COLUMN osgprod_data.rawdata.has_trailer IS 'does an empty block end the file?';
COMMENT ON COLUMN osgprod_data.rawdata.lead1       IS 'what a slice begins with that starts at the first block of work, or at block 1 if that is block 0';
COMMENT ON COLUMN osgprod_data.rawdata.lead2       IS 'what a slice begins with that starts later';
COMMENT ON COLUMN osgprod_data.rawdata.trailer     IS 'block that ends the file of a slice [32 bytes, or 0: none is needed]';
COMMENT ON COLUMN osgprod_data.rawdata.evio_version IS 'version of the EVIO format';
COMMENT ON COLUMN osgprod_data.rawdata.gaps        IS 'ranges inside of the file that are part of no slice: empty blocks [bytes]; NULL = none';
COMMENT ON COLUMN osgprod_data.rawdata.has_bor     IS 'is a begin-of-run record part of what slices begin with? NULL = not known, registered by release 0.9.0 or older';
COMMENT ON COLUMN osgprod_data.projects.demand_bor IS 'load no file that has no begin-of-run record?';

RESET ROLE;
