# docs/ops.md must hold what `op_runner support` prints.   cmake -DRUNNER=... -DPAGE=docs/ops.md -P check_support_table.cmake
execute_process(COMMAND "${RUNNER}" support OUTPUT_VARIABLE table RESULT_VARIABLE failed)
file(READ "${PAGE}" page)
string(FIND "${page}" "<!-- support table begin -->\n${table}<!-- support table end -->" at)
if(failed OR at EQUAL -1)
    message(FATAL_ERROR "${PAGE} does not hold the output of `op_runner support`:\n${table}")
endif()
