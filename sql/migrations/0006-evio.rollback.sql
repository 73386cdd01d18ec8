-- Older releases can't describe these files. It fails if a project works on one of them.
DELETE FROM osgprod_data.rawdata r
 WHERE r.first_block > 1 OR r.evio_version <> 4 OR r.gaps IS NOT NULL;
COMMENT ON COLUMN osgprod_data.rawdata.nblocks     IS 'data blocks, the trailer not counted';
COMMENT ON COLUMN osgprod_data.rawdata.first_block IS 'first block that is work: 1, or 0 when block 0 holds physics';
COMMENT ON COLUMN osgprod_data.rawdata.trailer     IS 'empty block that ends the file of a slice [32 bytes]';
COMMENT ON COLUMN osgprod_data.rawdata.lead1       IS 'what a slice from block 1 on begins with';
COMMENT ON COLUMN osgprod_data.rawdata.lead2       IS 'what a slice from a later block on begins with';
ALTER TABLE osgprod_data.projects DROP COLUMN demand_bor;
ALTER TABLE osgprod_data.rawdata
    DROP COLUMN has_bor,
    DROP COLUMN gaps,
    DROP COLUMN evio_version,
    DROP CONSTRAINT rawdata_trailer_check,
    ADD CONSTRAINT rawdata_trailer_check CHECK (length(trailer) = 32),
    DROP CONSTRAINT rawdata_first_block_check,
    ADD CONSTRAINT rawdata_first_block_check CHECK (first_block IN (0, 1));
