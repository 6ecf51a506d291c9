@echo off
rem Starts a Lattice node in the foreground; the first run makes the virtual environment and the .env
rem file. launch_lattice.sh is the same for Unix.
setlocal EnableExtensions DisableDelayedExpansion

set "ROOT=%~dp0"
set "NAME="
set "JOIN="

:next_argument
if "%~1"=="" goto arguments_done
if "%~1"=="-h" goto usage
if "%~1"=="--help" goto usage
if "%~1"=="--join" goto join_argument
set "ARGUMENT=%~1"
if "%ARGUMENT:~0,1%"=="-" goto unknown_option
if defined NAME goto two_names
set "NAME=%ARGUMENT%"
shift
goto next_argument

:join_argument
rem cmd splits arguments at an equals sign as well, so that --join=TICKET comes in here too.
if "%~2"=="" goto no_ticket
set "JOIN=%~2"
shift
shift
goto next_argument

:arguments_done
if not "%NAME%"=="twin" goto take_ticket
if defined JOIN goto twin_with_ticket

:take_ticket
rem The ticket goes on by the environment: the arguments of a process are open to every user.
if not defined JOIN goto find_python
if "%JOIN%"=="-" goto ticket_from_input
if "%JOIN:~0,1%"=="@" goto ticket_from_file
set "LATTICE_JOIN=%JOIN%"
goto find_python

:ticket_from_input
set "LATTICE_JOIN="
set /p LATTICE_JOIN=
if not defined LATTICE_JOIN goto no_ticket_input
goto find_python

:ticket_from_file
for %%F in ("%JOIN:~1%") do set "LATTICE_JOIN=@%%~fF"

:find_python
cd /d "%ROOT%"
set "CANDIDATE="
if not defined PYTHON goto try_launcher
set CANDIDATE="%PYTHON%"
%CANDIDATE% -c "import sys; sys.exit(sys.version_info < (3, 11))" >nul 2>&1
if errorlevel 1 goto bad_python
goto prepare

:try_launcher
py -3 -c "import sys; sys.exit(sys.version_info < (3, 11))" >nul 2>&1
if errorlevel 1 goto try_python
set "CANDIDATE=py -3"
goto prepare

:try_python
python -c "import sys; sys.exit(sys.version_info < (3, 11))" >nul 2>&1
if errorlevel 1 goto no_python
set "CANDIDATE=python"

:prepare
%CANDIDATE% "%ROOT%scripts\bootstrap.py" --venv "%ROOT%.venv" --for run
if errorlevel 1 exit /b %errorlevel%
if "%NAME%"=="twin" goto twin

set "ENV_FILE=%ROOT%.env"
if defined NAME set "ENV_FILE=%ROOT%.env.%NAME%"
"%ROOT%.venv\Scripts\python.exe" "%ROOT%scripts\bootstrap.py" --env-file-of "%NAME%" >nul
if errorlevel 1 exit /b %errorlevel%
"%ROOT%.venv\Scripts\python.exe" -m lattice start --env-file "%ENV_FILE%"
exit /b %errorlevel%

:twin
"%ROOT%.venv\Scripts\python.exe" "%ROOT%scripts\twin.py"
exit /b %errorlevel%

:usage
echo Usage: launch_lattice_v2.bat [NAME] [--join TICKET]
echo        launch_lattice_v2.bat twin
echo.
echo   NAME           settings are read from .env.NAME, and from .env without a NAME;
echo                  a missing file is made from .env.example
echo   --join TICKET  join the network of this ticket (also @FILE, or - for standard input)
echo   twin           two nodes on this machine, nodeA and nodeB, joined to each other
exit /b 0

:unknown_option
echo lattice: there is no option %ARGUMENT% 1>&2
exit /b 2

:two_names
echo lattice: one name, not two: %NAME%, %ARGUMENT% 1>&2
exit /b 2

:no_ticket
echo lattice: --join needs a ticket 1>&2
exit /b 2

:no_ticket_input
echo lattice: no ticket came in 1>&2
exit /b 2

:twin_with_ticket
echo lattice: twin makes its own network and takes no ticket 1>&2
exit /b 2

:bad_python
echo lattice: PYTHON=%PYTHON% does not run, or is older than 3.11 1>&2
exit /b 78

:no_python
echo lattice: Python 3.11 or newer is needed and none was found on PATH. 1>&2
echo lattice: install it, or name one with set PYTHON=C:\path\to\python.exe 1>&2
exit /b 78
