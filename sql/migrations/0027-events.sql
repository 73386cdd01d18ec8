-- How many events a registered file has, beside its blocks and bytes.
-- depends: 0020-tape

SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.rawdata ADD COLUMN events bigint;
COMMENT ON COLUMN osgprod_data.rawdata.events IS
    'events in the blocks that are work, by the block index; NULL = not counted';
-- Four bytes of the first and of the last entry: the rest of an index, hundreds of kilobytes, is not read.
UPDATE osgprod_data.rawdata r
   SET events = ('x' || encode(substring(r.block_index FROM 12 * r.nblocks + 9 FOR 4), 'hex'))::bit(32)::bigint
              - ('x' || encode(substring(r.block_index FROM 12 * r.first_block + 9 FOR 4), 'hex'))::bit(32)::bigint;

RESET ROLE;
