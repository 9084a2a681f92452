"""What newcomers stumbled over has a test or a sentence in the documentation, by number.

The numbers are those of the issue "Internal dashboards as people build them, and those who run
them", whose list came from developers and an operator who had only the documentation.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_reports import section

ROOT = Path(__file__).parent.parent

# A test, as "folder/file.name"; or a page with the anchor of one of its sections.
FRICTIONS = {
    1: (  # a new secret key is rolled out
        "sessions/test_rolling_keys.test_processes_of_neighbouring_steps_serve_the_same_users",
        "cli/test_cli.test_the_secret_keys_are_named_by_a_short_hash_the_same_on_each_machine",
        "docs/options.md#changing-secret_key",
    ),
    2: (  # a health check that checks
        "auth/test_health.test_a_redis_that_stands_still_or_has_no_memory_is_503_within_a_second",
        "docs/deployment.md#health-checks",
    ),
    3: (  # work over a WebSocket is activity
        "ways_in/test_long_lived.test_who_works_only_through_a_websocket_is_not_timed_out",
        "docs/options.md#activity",
    ),
    4: (  # a stream ends with its session
        "ways_in/test_long_lived.test_a_stream_ends_with_its_session",
        "ways_in/test_long_lived.test_a_generator_ends_with_its_session",
        "matrix/test_long_lived_servers.test_long_lived_connections_end_with_their_session",
        "docs/background.md#connections-that-last",
    ),
    5: (  # cookies behind a proxy that does not tell the scheme
        "security/test_cookie.test_secure_follows_redirect_uri_whatever_scheme_the_proxy_tells",
        "security/test_cookie.test_a_proxy_that_forgot_the_scheme_is_told_of_once",
        "docs/deployment.md#a-proxy-before-it",
    ),
    6: (  # who may come in
        "auth/test_allow.test_the_environment_may_say_who_comes_in",
        "cli/test_cli.test_a_door_that_is_open_to_everybody_is_a_warning",
        "docs/deployment.md#a-checklist",
        "docs/options.md#who-may-come-in",
    ),
    7: ("docs/install.md#from-the-repository",),  # installed before there is a release
    8: (  # options that are missing
        "ways_in/test_faulty_start.test_a_wrong_option_ends_the_start_with_its_reason",
        "matrix/test_failed_start.test_a_wrong_option_ends_the_start",
        "ways_in/test_config.test_all_missing_options_are_named_at_once",
        "docs/troubleshooting.md#cm_auth_middleware-cannot-start",
    ),
    9: (  # frameworks for dashboards
        "matrix/test_dashboards.test_a_dashboard_works_behind_the_login_and_leads_back_to_it",
        "docs/dashboards.md#dashboards",
    ),
    10: (  # the login when a session ends in one
        "browser/test_session_script.test_it_leads_to_the_login_and_back_to_the_very_page",
        "docs/front-ends.md#when-the-session-ends",
    ),
    11: (  # the client where the request is hidden
        "ways_in/test_session_header.test_a_callback_finds_its_user_and_client_by_the_header_alone",
        "docs/dashboards.md#the-way-to-the-client",
    ),
    12: (  # handlers that are a plain def
        "ways_in/test_sync_handlers.test_handlers_in_threads_have_the_client_of_their_own_user",
        "ways_in/test_mounted_flask.test_a_mounted_flask_app_has_the_client_and_the_session_of_its_visitor",
    ),
    13: (  # a logout that logs in again
        "web/test_pages.test_a_logout_ends_at_the_signed_out_page",
        "docs/pages.md#after-a-logout",
    ),
    14: (  # who is logged in
        "cli/test_cli.test_sessions_are_counted_listed_and_ended",
        "cli/test_cli.test_sessions_are_listed_in_pages",
        "ways_in/test_audit_log.test_a_login_and_a_logout_name_the_user_and_the_address",
        "ways_in/test_route_rules.test_each_refusal_is_in_the_audit_log_once",
        "docs/signals.md#audit-log",
    ),
    15: (  # CORS
        "web/test_answers.test_a_preflight_of_a_trusted_origin_is_answered",
        "web/test_answers.test_a_cors_middleware_around_ours_answers_for_both",
        "docs/front-ends.md#a-front-end-on-another-origin",
    ),
    16: (  # files for a deployment
        "test_deploy.test_the_compose_file_serves_logins_behind_tls_and_outlives_an_instance",
        "test_deploy.test_the_pods_of_the_manifests_start_and_pass_their_probes",
        "test_deploy.test_the_unit_starts_and_serves_logins",
        "test_deploy.test_forms_with_files_can_be_taken_though_all_else_is_read_only",
        "stores/test_backup.test_a_copy_of_redis_brings_sessions_back",
        "docs/deployment.md#records",
    ),
    17: (  # secrets in files
        "ways_in/test_config.test_options_come_from_files_that_variables_name",
    ),
    18: (  # a store that cannot work
        "ways_in/test_faulty_start.test_a_store_that_cannot_be_opened_is_warned_of_at_the_start",
        "docs/troubleshooting.md#store_unusable-in-the-log",
    ),
    19: (  # the session in templates
        "ways_in/test_flask.test_templates_know_the_session",
        "matrix/test_framework_users.test_flask_login_knows_the_user",
        "docs/quickstart/flask.md#flask-login",
    ),
    20: (  # the user, where frameworks look
        "ways_in/test_users.test_starlettes_request_has_the_user_and_the_scopes",
        "ways_in/test_users.test_remote_user_is_the_users_id_and_no_header_sets_it",
        "matrix/test_framework_users.test_djangos_remote_user_middleware_has_a_user_for_each_of_ours",
        "docs/dashboards.md#the-way-to-the-client",
    ),
    21: (  # a misspelt variable
        "ways_in/test_faulty_start.test_a_misspelt_variable_is_warned_of_with_the_right_name",
        "docs/troubleshooting.md#variable_unknown-in-the-log",
    ),
    22: (  # one's own application with the simulator
        "cli/test_dev.test_an_application_runs_with_a_login_and_keeps_it_when_a_file_changes",
        "docs/cli.md#dev",
    ),
    23: (  # a wrong secret
        "web/test_pages.test_a_refused_api_key_asks_nobody_to_try_again_in_a_moment",
        "docs/troubleshooting.md#this-application-is-not-set-up-correctly",
    ),
    24: (  # logs as JSON
        "ways_in/test_audit_log.test_a_line_of_json_has_time_level_logger_message_and_fields",
        "ways_in/test_audit_log.test_a_line_of_json_has_the_exception",
        "docs/signals.md#log-events",
    ),
    25: ("docs/origins.md#proxies",),  # a port behind nginx
    26: (  # test_request_context()
        "ways_in/test_flask.test_a_request_that_went_round_the_login_is_told_from_a_missing_login",
    ),
    27: (  # cm_login with a factory, an async client, a WebSocket
        "testing/test_plugin.test_what_makes_an_application_is_told_from_one",
        "docs/testing.md#logging-in-cm_login",
    ),
    28: (  # the middleware twice
        "ways_in/test_two_middlewares.test_two_of_them_are_warned_of_once",
        "docs/troubleshooting.md#logged-in-and-sent-to-the-login-again",
    ),
    29: ("docs/dashboards.md#dashboards",),  # a layout of Dash that is a function
    30: (  # the words of cm-auth
        "cli/test_cli.test_one_character_is_one",
        "cli/test_cli.test_a_misspelt_option_is_noticed",
        "cli/test_cli.test_a_check_is_json_too",
        "cli/test_json.test_one_line_of_json_is_the_output_of_a_command",
    ),
    31: (  # what is done after the response
        "ways_in/test_long_lived.test_what_a_background_task_puts_into_the_session_is_saved",
        "docs/background.md#connections-that-last",
    ),
}


def test_no_friction_is_forgotten() -> None:
    assert list(FRICTIONS) == list(range(1, 32))


@pytest.mark.parametrize("number", FRICTIONS)
def test_each_test_and_each_sentence_is_there(number: int) -> None:
    for name in FRICTIONS[number]:
        page, _, anchor = name.partition("#")
        if anchor:
            assert section(page, anchor).strip(), name
        else:
            file, _, test = name.partition(".")
            text = (ROOT / "tests" / f"{file}.py").read_text()
            assert re.search(rf"def {test}\(", text), name
