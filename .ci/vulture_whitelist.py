# ruff: noqa
# pyright: basic
"""Names that vulture reports although they are in use, by what uses them."""

# The configuration file and messages: pydantic reads and writes every field.
_.delay_filter_timeout
_.htype
_.max_number_of_forwarders_spawned
_.module_sync_queue_size
_.duration_s
_.n_datasets
_.n_modules
_.needed_bytes
_.not_closed
_.not_of_this_run
_.sender_sends_full_images
_.shm_free_bytes
_.start_udp_port
_.use_all_forwarders

# Called by name in the process of the camera (benchmarks).
_.send_frames

# uvicorn, Starlette, websockets and logging.
_.capture_signals
_.disabled
_.disconnected
_.media_type
_.render
_.should_exit

# dranspose.
_.Ingester
_.Reducer
_.process_event
_.process_result

# BEC.
_.SimulatedStdDaqCamera
_.USER_ACCESS
_.on_kickoff
_.on_stage
_.on_trigger
_.on_unstage

# ophyd, Bluesky, databroker and tiled.
_.CheckedHDF5Adapter
_._settled
_.collect_asset_docs
_.describe_collect
_.get_index
_.return_type
_.settle_time
_.success
_._finish_all

# ophyd-async.
_.collections_written_signal
_.config_sigs
_.config_values
_.datakey_name
_.default_trigger_info
_.ensure_stopped
_.make_datakeys
_.make_stream_docs
_.get_deadtime
_.prepare_edge
_.prepare_internal
_.prepare_unbounded
_.start_acquiring
_.wait_for_idle

# http.server and pytest, in tests.
_.do_GET
_.log_message
_.logger_as_before
_.promise

# The prompt of IPython, in examples.
_.grid_scan
_.motor1
_.motor2

# A field that only the comparison of its dataclass reads.
_.start_up

# An option of a ZeroMQ socket.
_.rcvbuf

# Fields that the simulator of packets reads by name.
_.wrong_port
_.wrong_size

# Methods that uvicorn and asyncio call.
_.handle_ping
_.resume_reading

# An attribute of a session of requests.
_.trust_env
