# The ops: an object library that goes into libhysparse, and op_runner.
set(HS_OPS_DIR "${CMAKE_CURRENT_LIST_DIR}")
