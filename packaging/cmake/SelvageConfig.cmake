# find_package(Selvage) gives selvage::selvage, the shared library, and selvage::selvage_static. Both have the
# headers <selvage.h> and <selvage.hpp>. Paths are relative to this file, so that the whole tree can be moved.

include(CMakeFindDependencyMacro)
find_dependency(Threads)

get_filename_component(_selvage_root "${CMAKE_CURRENT_LIST_DIR}/@CMAKE_UP@" ABSOLUTE)

if(NOT TARGET selvage::selvage)
  add_library(selvage::selvage SHARED IMPORTED)
  set_target_properties(selvage::selvage PROPERTIES
    IMPORTED_LOCATION "${_selvage_root}/@CMAKE_LIBDIR@/libselvage.so.@VERSION@"
    IMPORTED_SONAME "libselvage.so.@SOVERSION@"
    INTERFACE_INCLUDE_DIRECTORIES "${_selvage_root}/include")
endif()

if(NOT TARGET selvage::selvage_static)
  add_library(selvage::selvage_static STATIC IMPORTED)
  set_target_properties(selvage::selvage_static PROPERTIES
    IMPORTED_LOCATION "${_selvage_root}/@CMAKE_LIBDIR@/libselvage.a"
    INTERFACE_LINK_LIBRARIES "@CMAKE_STATIC_LIBS@"
    INTERFACE_INCLUDE_DIRECTORIES "${_selvage_root}/include")
endif()

unset(_selvage_root)
