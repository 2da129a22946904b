#!/bin/sh
# Builds the C library and installs it:
#
#     smallthinker-ffi/install.sh PREFIX
#
# Below PREFIX: include/smallthinker.h, the static and the shared library in lib, and package files for
# pkg-config (lib/pkgconfig/smallthinker.pc) and CMake (lib/cmake/smallthinker; targets
# smallthinker::smallthinker, shared, and smallthinker::static). DESTDIR, if set, goes before PREFIX, for
# packagers. Variables for cargo, such as CARGO_TARGET_DIR, work as usual.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 PREFIX" >&2; exit 2; }
case $1 in
    /*) prefix=$1 ;;
    *) prefix=$(pwd)/$1 ;;
esac
cd "$(dirname "$0")/.."

header=include/smallthinker.h
version=$(sed -n 's/^#define ST_VERSION "\(.*\)"/\1/p' "$header")
abi=$(sed -n 's/^#define ST_ABI_VERSION //p' "$header")
soname=libsmallthinker.so.$abi
case $(uname -s) in
    Darwin) shared=libsmallthinker.dylib link_name="-Wl,-install_name,$prefix/lib/libsmallthinker.dylib" ;;
    *) shared=libsmallthinker.so link_name="-Wl,-soname,$soname" ;;
esac

native_file=$(mktemp)
trap 'rm -f "$native_file"' EXIT
# The compiler says what a static library needs of the system.
cargo rustc --release -p smallthinker-ffi --lib --crate-type cdylib,staticlib -- \
    -C "link-arg=$link_name" --print "native-static-libs=$native_file"
native=$(cat "$native_file")
built=${CARGO_TARGET_DIR:-target}/release

root=${DESTDIR:-}$prefix
mkdir -p "$root/include" "$root/lib/pkgconfig" "$root/lib/cmake/smallthinker"
install -m 644 "$header" "$root/include/smallthinker.h"
install -m 644 "$built/libsmallthinker.a" "$root/lib/libsmallthinker.a"
if [ "$shared" = libsmallthinker.so ]; then
    # The loader looks for the soname, the linker for the plain name.
    install -m 755 "$built/$shared" "$root/lib/$shared.$version"
    ln -sf "$shared.$version" "$root/lib/$soname"
    ln -sf "$soname" "$root/lib/$shared"
else
    install -m 755 "$built/$shared" "$root/lib/$shared"
fi

cat > "$root/lib/pkgconfig/smallthinker.pc" <<PC
prefix=$prefix
includedir=\${prefix}/include
libdir=\${prefix}/lib

Name: smallthinker
Description: Runs SmallThinker language models from GGUF files on the CPU
Version: $version
Cflags: -I\${includedir}
Libs: -L\${libdir} -lsmallthinker
Libs.private: $native
PC

cmake=$root/lib/cmake/smallthinker
# What CMake wants to know of an imported library, with paths relative to this file so that PREFIX may move.
cat > "$cmake/smallthinkerConfig.cmake" <<CMAKE
get_filename_component(_smallthinker_prefix "\${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
if(NOT TARGET smallthinker::smallthinker)
    add_library(smallthinker::smallthinker SHARED IMPORTED)
    set_target_properties(smallthinker::smallthinker PROPERTIES
        IMPORTED_LOCATION "\${_smallthinker_prefix}/lib/$shared"
        INTERFACE_INCLUDE_DIRECTORIES "\${_smallthinker_prefix}/include")
    if(NOT APPLE)
        set_target_properties(smallthinker::smallthinker PROPERTIES IMPORTED_SONAME "$soname")
    endif()
endif()
if(NOT TARGET smallthinker::static)
    add_library(smallthinker::static STATIC IMPORTED)
    set_target_properties(smallthinker::static PROPERTIES
        IMPORTED_LOCATION "\${_smallthinker_prefix}/lib/libsmallthinker.a"
        INTERFACE_INCLUDE_DIRECTORIES "\${_smallthinker_prefix}/include"
        INTERFACE_LINK_LIBRARIES "$(echo "$native" | tr -s ' ' ';')")
endif()
unset(_smallthinker_prefix)
CMAKE

# Before 1.0 a new minor version may break programs.
cat > "$cmake/smallthinkerConfigVersion.cmake" <<CMAKE
set(PACKAGE_VERSION "$version")
set(PACKAGE_VERSION_COMPATIBLE TRUE)
if(PACKAGE_FIND_VERSION VERSION_GREATER PACKAGE_VERSION
        OR NOT PACKAGE_FIND_VERSION_MAJOR EQUAL $(echo "$version" | cut -d. -f1)
        OR (PACKAGE_FIND_VERSION_COUNT GREATER 1
            AND NOT PACKAGE_FIND_VERSION_MINOR EQUAL $(echo "$version" | cut -d. -f2)))
    set(PACKAGE_VERSION_COMPATIBLE FALSE)
elseif(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
    set(PACKAGE_VERSION_EXACT TRUE)
endif()
CMAKE

echo "installed smallthinker $version in $root"
