# libhysparse: the C runtime behind hysparse.h, with the ops and ggml linked in.
set(HS_RUNTIME_DIR "${CMAKE_CURRENT_LIST_DIR}")
