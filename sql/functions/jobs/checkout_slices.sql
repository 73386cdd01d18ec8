CREATE FUNCTION osgprod.checkout_slices(p_calls json)
RETURNS SETOF osgprod.checkout_answer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $fn$
-- Does checkout_slice for several jobs in one transaction, at a fraction of the cost (docs/performance.md).
-- Promise:    that of checkout_slice, for each. An error is the answer of its call alone: it neither undoes, repeats nor
--             delays another. Of several calls none waits, except for a file when other sessions have locked all of them: 0.5 s
--             at most for each lock (see _wait_for_file). After the first answer 55P03, whatever was busy, nothing waits. A list of
--             one call waits as checkout_slice does.
-- Parameters: p_calls  list of objects, each with a number n and the parameters of checkout_slice, without their p_; what
--                      is missing is null, other names are ignored. client: v4-mapped addresses as IPv4
-- Returns:    one row for each: its n and what checkout_slice returns, in any order; of an error code, message and hint.
--             Code 55P03: what this call needs is busy, also with an earlier call of the list: make it again, alone
-- Errors:     only PostgreSQL's, like 22P02: p_calls is no such list, or a value has another type
-- Locks:      those of checkout_slice
-- Source:     docs/design.md "The claim"
DECLARE
    v_is_alone boolean := json_array_length(p_calls) = 1;  -- once: it reads the whole list
    v_may_wait boolean := true;
    v_call     osgprod.checkout_call;
    v_answer   osgprod.checkout_answer;
BEGIN
    FOR v_call IN
        SELECT r.* FROM json_populate_recordset(NULL::osgprod.checkout_call, p_calls) r
         ORDER BY r.project, r.cluster, r.process, r.n
    LOOP
        v_answer := osgprod._checkout(v_call, v_is_alone, v_may_wait);
        v_may_wait := v_may_wait AND v_answer.code IS DISTINCT FROM '55P03';  -- once is enough
        v_answer.n := v_call.n;
        RETURN NEXT v_answer;
    END LOOP;
    PERFORM osgprod._confirm_answer();
END
$fn$;

COMMENT ON FUNCTION osgprod.checkout_slices(json) IS
'Does checkout_slice for several jobs at once, in one transaction; one row for each, an error in the row of its call. For osgprod_worker and osgprod_operator.';
