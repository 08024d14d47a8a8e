"""Mastra's own client, unmodified, against this server.

What goes wrong between that client and its own server has a test here that shows that it does not with this one:

- a run is aborted when the connection of its stream is lost: `TestAbort.test_leaving_a_stream_leaves_the_run_going`,
  `TestCuts.test_a_client_behind_a_breaking_network_never_stops_the_run`
- `observe` of an unknown run, or beyond the end of one, is silent for minutes; a run is forgotten soon after its end:
  `test_nothing_that_fails_for_good_is_asked_for_again`, `assert_one_list` in `test_runs`
- `observe` gives envelopes, and other ones live than later:
  `TestText.test_a_second_application_follows_a_run_that_goes_on`, `test_each_chunk_is_a_bare_one_of_the_protocol`
- a retry executes the run twice: `TestRetries.test_a_run_is_started_once_however_often_the_client_asks`,
  `test_the_same_run_asked_for_by_several_at_once_is_one`
- client tools with a run id loop: `TestClientTools`
- until idle with a run id, the model never hears of its task:
  `TestBackground.test_until_idle_the_stream_goes_on_until_the_model_has_heard_of_the_end`
- a decision about a run of somebody's thread is refused:
  `TestSuspendedRuns.test_a_run_that_waits_is_listed_with_all_that_it_takes_to_answer_it`
- a decision sent again fails, and two at once execute the tool twice:
  `TestRetries.test_a_decision_is_applied_once_and_repeated_gives_the_same_continuation`,
  `test_of_two_who_approve_at_once_both_get_the_one_continuation`
- a run that waits for an approval is listed as one that does not, without the arguments: `TestSuspendedRuns`
- what fails for good is a 5xx, so that the client does it four times: `test_refusals`
"""
