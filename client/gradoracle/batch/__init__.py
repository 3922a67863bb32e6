"""Batch jobs: many cases from a file, each judged by the service and kept as one line of a results file.

case_files, protobuf        files of cases, one case at a time
cases                       a line  ->  a case  ->  a request
arrays, array_files         a case's arrays, from numbers, files or for the server to draw
survey                      the pass over everything before anything is sent
shards, selection           which of the cases a process takes
runner, packing, sending    cases  ->  requests of one stream, through restarts of the server  ->  records
records, record_json        one result: what a line of a results file holds
results, parquet            the results file: written so that a crash at any byte leaves a file that resumes
earlier, ids                what is there from before: ids, and digests of what the cases said then
progress, tally             how a run stands, and what it amounts to
compare                     what changed between two results files
report, report_*            the page of the results; junit, summary, annotations: the same for programs
text, lines                 texts of others as files and terminals can have them; lines of JSON
"""
