# Manual pages and shell completions beside the programs that qlora_tools installs. They come out of the program itself,
# from the same table that it parses with.
include(GNUInstallDirs)

function(qlora_install_pages name)
  install(CODE "
    set(pages \"${CMAKE_CURRENT_BINARY_DIR}/install\")
    file(MAKE_DIRECTORY \"\${pages}\")
    foreach(page \"--help-man;${name}.1\" \"--help-bash-completion;${name}\")
      list(GET page 0 switch)
      list(GET page 1 file)
      execute_process(COMMAND \"$<TARGET_FILE:${name}>\" \${switch} OUTPUT_FILE \"\${pages}/\${file}\" RESULT_VARIABLE code)
      if(NOT code EQUAL 0)
        message(FATAL_ERROR \"${name} \${switch} ended with \${code}\")
      endif()
    endforeach()
    file(INSTALL DESTINATION \"\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_MANDIR}/man1\" TYPE FILE
         FILES \"\${pages}/${name}.1\")
    file(INSTALL DESTINATION \"\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_DATADIR}/bash-completion/completions\" TYPE FILE
         FILES \"\${pages}/${name}\")")
endfunction()
