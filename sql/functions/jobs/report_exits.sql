CREATE FUNCTION osgprod.report_exits(p_calls json)
RETURNS SETOF osgprod.report_answer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, osgprod_data, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $fn$
-- Does report_exit for several jobs in one transaction, at a fraction of the cost (docs/performance.md).
-- Promise:    that of report_exit, for each. An error is the answer of its call alone: it neither undoes, repeats nor delays
--             another. Of several calls none waits, but up to 1 ms for each lock that a call needs which takes failures off slices; a
--             list of one call waits as report_exit does.
-- Parameters: p_calls  list of objects, each with a number n and the parameters of report_exit, without their p_; what
--                      is missing is null, other names are ignored. client: v4-mapped addresses as IPv4
-- Returns:    one row for each: its n and what report_exit returns, in any order; of an error code, message and hint.
--             Code 55P03: what this call needs is busy, also with an earlier call of the list: make it again, alone
-- Errors:     only PostgreSQL's, like 22P02: p_calls is no such list, or a value has another type
-- Locks:      those of report_exit
-- Source:     docs/design.md "The claim"
DECLARE
    v_is_alone boolean := json_array_length(p_calls) = 1;  -- once: it reads the whole list
    v_call     osgprod.report_call;
    v_answer   osgprod.report_answer;
BEGIN
    FOR v_call IN
        SELECT r.* FROM json_populate_recordset(NULL::osgprod.report_call, p_calls) r
         ORDER BY r.project, r.cluster, r.process, r.n
    LOOP
        v_answer := osgprod._report(v_call, v_is_alone);
        v_answer.n := v_call.n;
        RETURN NEXT v_answer;
    END LOOP;
    PERFORM osgprod._confirm_answer();
END
$fn$;

COMMENT ON FUNCTION osgprod.report_exits(json) IS
'Does report_exit for several jobs at once, in one transaction; one row for each, an error in the row of its call. For osgprod_worker and osgprod_operator.';
